//! Counters, histograms and log set-up; imports nothing of the crate.
