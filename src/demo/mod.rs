//! The embedded world: an API, a runner and sample sandboxes, for `sandgate demo` and for the tests.

use std::process::ExitCode;

pub struct DemoOptions {
    pub port: u16,
}

pub fn run(_options: DemoOptions) -> ExitCode {
    ExitCode::FAILURE
}
