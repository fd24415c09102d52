//! Where a statically linked program looks names up.

use std::ffi::{CStr, c_char, c_int};

/// Each database that we ask, and what is asked: only what is linked into a static program.
const SERVICES: [(&CStr, &CStr); 3] = [(c"hosts", c"files dns"), (c"passwd", c"files"), (c"group", c"files")];

unsafe extern "C" {
    /// Declared in <nss.h> of the GNU C library: the services of a database from now on, as in /etc/nsswitch.conf.
    fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
}

/// Keeps a statically linked program from loading libraries of the machine it runs on.
///
/// Where /etc/nsswitch.conf names more than `files` and `dns`, the C library would load that service's library, and with it
/// the machine's own C library beside the one in the program; two different ones don't get along. So a static program asks
/// /etc/hosts, /etc/passwd, /etc/group and the DNS servers of /etc/resolv.conf only (docs/decisions/0215).
///
/// Call it before the first look-up, while the process has one thread.
pub(in crate::net) fn use_linked_services() {
    for (database, services) in SERVICES {
        configure(database, services);
    }
}

fn configure(database: &CStr, services: &CStr) -> bool {
    // SAFETY: both end with a zero byte, and the function copies what it keeps.
    unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) == 0 }
}

#[cfg(test)]
mod tests {
    use std::net::ToSocketAddrs as _;

    use super::*;

    #[test]
    fn the_c_library_takes_each_of_them_and_no_other() {
        for (database, services) in SERVICES {
            assert!(configure(database, services), "{database:?}");
        }
        assert!(!configure(c"no-such-database", c"files"));
    }

    #[test]
    fn names_are_found_in_the_file_of_hosts() {
        use_linked_services();
        let found: Vec<_> = ("localhost", 80).to_socket_addrs().unwrap().collect();
        assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
        assert!(crate::net::User::find("root").unwrap().is_some_and(|user| user.uid() == 0));
    }
}
