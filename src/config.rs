//! Configuration: environment to checked values, all mistakes together.
