//! Start and stop order of one process.
