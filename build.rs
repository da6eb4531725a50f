//! Rebuilds when a migration is added or changed: `sqlx::migrate!` reads the folder, but cargo does not see that. And
//! links what runs on a GPU.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        // A machine without a GPU has an empty library in the driver's place (`tools/cuda-build`). A linker that finds
        // nothing in it would leave it out, and the program would not start where the real one is.
        println!("cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed,-lcuda,--pop-state");
    }
}
