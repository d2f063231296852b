//! Lets the linker export the simulated kernel's functions, so that the relay's library calls them
//! instead of libc's.

fn main() {
    println!("cargo:rustc-link-arg-bins=-rdynamic");
}
