//! The program: an allocator, and the command line of the library.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // SAFETY: no other thread is running yet.
    unsafe { attune::system::keep_freed_memory() };
    attune::system::only_asked_for_huge_pages();
    attune::cli::run()
}
