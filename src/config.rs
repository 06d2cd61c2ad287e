//! Files as written → validated plan.

pub mod yaml;
