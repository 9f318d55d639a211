def family_hash(family: str) -> str:
    return ""
