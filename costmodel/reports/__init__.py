"""What a user reads: the notation of a layer, tables, pictures, the HTML report and the command line."""
