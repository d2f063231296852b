//! Lets the linker export the functions of the simulated kernel, so that the relay's library calls
//! them and not those of libc.

fn main() {
    println!("cargo:rustc-link-arg-bins=-rdynamic");
}
