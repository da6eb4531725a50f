//! The command line: parses arguments, sets up logging, and calls the library.

fn main() {}
