"""Files as pieces of a memory: `reading` makes texts of them, `splitting` pieces of texts, `adding` stores those."""
