//! Rebuilds when a migration or a file of the page is added or changed: macros read the folders, but cargo does not see
//! that. And links what runs on a GPU.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-changed=assets/ui");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        // A machine without a GPU has another library in the driver's place: an empty one (`tools/cuda-build`), or one that
        // finds the driver at the start if there is one (`docker/optional-driver`). A linker that needs nothing of it
        // would leave it out, and the program would not start where the driver is.
        println!("cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed,-lcuda,--pop-state");
    }
}
