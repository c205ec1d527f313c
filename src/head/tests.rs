//! Tests of the message heads.
