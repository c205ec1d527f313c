//! The gate that tests measure: the `sandgate` beside this package's binary, which `cargo test --workspace` builds;
//! `LOADTEST_TEST_GATE` names another.

use std::path::{Path, PathBuf};

pub fn gate_binary() -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("sandgate");
    let path = std::env::var_os("LOADTEST_TEST_GATE").map_or(beside, PathBuf::from);
    assert!(path.exists(), "{} is missing: cargo build --package sandgate", path.display());
    path
}
