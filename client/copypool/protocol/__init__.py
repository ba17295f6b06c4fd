"""What every process of Copypool agrees on: words, wire structs, errors, checksums, tokens. No I/O."""
