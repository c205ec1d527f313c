//! The embedded world: an API, a runner and sample sandboxes, for `sandgate demo` and for the tests.
