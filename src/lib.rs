//! throughway

pub mod demo;
pub mod net {
    //! Sockets and interfaces.
    pub mod interfaces;
}
