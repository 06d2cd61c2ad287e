//! Files as written → validated plan.
