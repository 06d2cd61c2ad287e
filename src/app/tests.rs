//! The application in process.

mod power_cuts;
