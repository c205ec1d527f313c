//! The load generator against real sockets: is what it says what was there?

#[path = "../../tests/support/free_port.rs"]
mod free_port;

mod load {
    mod agents;
    mod churn;
    mod command;
    mod content;
    mod har;
    mod honesty;
    mod peer;
    mod search;
    mod sessions;
    mod tls;
}
