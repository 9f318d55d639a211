"""TMA descriptors that the CUDA driver would refuse, by the rules that it documents for cuTensorMapEncodeTiled."""

from dataclasses import replace

import pytest

from bench.executor.descriptor import TensorMap, overlap, refusal, tensor_map

FLOAT16, FLOAT32, INT32, BFLOAT16, TF32 = 6, 7, 3, 9, 11
#: Of float16 [4, 10, 12, 64], the innermost axis first.
GOOD = TensorMap(0x7F0000000010, FLOAT16, (64, 12, 10, 4), (128, 1536, 15360), (64, 8, 8, 1), 128, False, (1, 1, 1, 1))


def test_a_descriptor_that_is_taken():
    assert refusal(GOOD) == "" and overlap(GOOD) == ""


def test_the_limits_themselves_are_taken():
    widest = replace(GOOD, shape=(1 << 32, 12, 10, 4), strides=((1 << 40) - 16,) * 3, box=(64, 256, 256, 256))
    assert refusal(widest) == ""
    assert refusal(replace(GOOD, element_strides=(8, 8, 8, 8))) == ""
    assert refusal(replace(GOOD, shape=(64,), strides=(), box=(8,), element_strides=(1,), swizzle=0)) == ""


@pytest.mark.parametrize(
    "change, says",
    [
        ({"shape": (), "strides": (), "box": ()}, "rank must be 1 to 5, got 0"),
        ({"shape": (8,) * 6, "strides": (16,) * 5, "box": (8,) * 6}, "rank must be 1 to 5, got 6"),
        ({"interleave": 16, "shape": (64, 2), "strides": (128,), "box": (64, 2)}, "rank 3 or more, got 2"),
        ({"element_type": 40}, "no data type 40"),
        ({"strides": (128, 1536)}, "have 3 strides"),
        ({"address": 0x7F0000000008}, "address must be a multiple of 16"),
        (
            {"address": 0x7F0000000010, "interleave": 32, "swizzle": 32, "box": (16, 8, 8, 1)},
            "address must be a multiple of 32",
        ),
        ({"shape": (64, 0, 10, 4)}, "axis 1 must have 1 to 2\\^32 elements, got 0"),
        ({"shape": (64, 12, 10, (1 << 32) + 1)}, "axis 3 must have 1 to 2\\^32"),
        ({"strides": (136, 1536, 15360)}, "stride of axis 1 must be a multiple of 16 bytes below 2\\^40, got 136"),
        ({"strides": (128, 1536, 1 << 40)}, "stride of axis 3"),
        ({"strides": (128, -1536, 15360)}, "stride of axis 2"),
        ({"address": 0x20, "interleave": 32, "swizzle": 32, "strides": (16, 1536, 15360)}, "multiple of 32 bytes"),
        ({"box": (64, 257, 8, 1)}, "axis 1 of its box must have 1 to 256 elements, got 257"),
        ({"box": (64, 8, 0, 1)}, "axis 2 of its box"),
        ({"box": (4, 8, 8, 1), "swizzle": 0}, "must be a multiple of 16 bytes along axis 0, got 8"),
        ({"box": (128, 8, 8, 1)}, "no wider along axis 0 than the swizzle's 128 bytes, got 256"),
        ({"box": (32, 8, 8, 1), "swizzle": 32}, "swizzle's 32 bytes, got 64"),
        ({"element_strides": (1, 9, 1, 1)}, "element stride of axis 1 must be 1 to 8, got 9"),
        ({"element_strides": (1, 1, 0, 1)}, "element stride of axis 2"),
        ({"interleave": 32, "address": 0x20, "swizzle": 64}, "interleave of 32 bytes needs a swizzle of 32"),
        ({"swizzle": -1}, "no interleave of 0 bytes with a swizzle of -1"),
        ({"element_type": INT32, "box": (32, 8, 8, 1), "fill_nan": True}, "filled with NaN"),
    ],
    ids=str,
)
def test_what_the_driver_refuses(change, says):
    with pytest.raises(AssertionError, match=says):
        assert not refusal(replace(GOOD, **change)), refusal(replace(GOOD, **change))


def test_the_first_element_stride_does_not_count_without_interleave():
    assert refusal(replace(GOOD, element_strides=(0, 1, 1, 1))) == ""
    assert "axis 0" in refusal(replace(GOOD, interleave=16, element_strides=(0, 1, 1, 1)))


def test_axes_that_lie_over_one_another():
    """Legal by the words of the documentation, whose example computes strides that never do it."""
    over = replace(GOOD, strides=(64, 1536, 15360))
    assert refusal(over) == "" and overlap(over) == "axis 1 steps by 64 bytes over 128 that lie within it"
    turned = replace(GOOD, shape=(64, 10, 12, 4), strides=(1536, 128, 15360))
    assert "axis 2 steps by 128" in overlap(turned)
    assert overlap(replace(GOOD, shape=(64, 1, 10, 4), strides=(16, 1536, 15360))) == ""


def test_tritons_arguments():
    """Axes come outermost first there, and strides in elements."""
    made = tensor_map(0x1000, 3, 2, BFLOAT16, [1, 8, 64], [4, 12, 64], [960, 64, 1], 0)
    want = TensorMap(0x1000, BFLOAT16, (64, 12, 4), (128, 1920), (64, 8, 1), 128, False, (1, 1, 1))
    assert made == want and made.element_size == 2
    assert tensor_map(0x1000, 1, 4, TF32, [8], [12], [1], 1).fill_nan
    assert "swizzle of -1" in refusal(tensor_map(0x1000, 7, 2, FLOAT16, [8], [12], [1], 0))
