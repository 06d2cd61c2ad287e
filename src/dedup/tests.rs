//! Gates, queue and fingerprints over a simulated disk, one step at a time.

mod damage;
mod identity;
mod model;
mod orders;
mod restarts;
mod rig;
