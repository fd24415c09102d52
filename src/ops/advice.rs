//! Settings of the machine that a relay suffers from: looked at once at the start, told as warnings.

use std::fs;
use std::ops::RangeInclusive;

/// Each thing to look at, as a sentence with its remedy.
#[must_use]
pub fn machine(relay_ports: &RangeInclusive<u16>, receive_buffer: Option<usize>, wanted: usize) -> Vec<String> {
    // A sandbox may hide these (ProcSubset=pid); then there is nothing to say about them.
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    let mut advice = Vec::new();
    advice.extend(buffers(receive_buffer, wanted));
    advice.extend(ports(relay_ports, &read("ip_local_port_range"), &read("ip_local_reserved_ports")));
    advice
}

fn buffers(granted: Option<usize>, wanted: usize) -> Option<String> {
    let granted = granted.filter(|granted| *granted < wanted)?;
    Some(format!(
        "net.core.rmem_max: a listener got {granted} bytes of receive buffer instead of {wanted}, so bursts are lost; sysctl net.core.rmem_max={wanted}"
    ))
}

/// Warns when the system may take relay ports for its own outgoing connections.
fn ports(relay: &RangeInclusive<u16>, local: &str, reserved: &str) -> Option<String> {
    let mut bounds = local.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (bounds.next(), bounds.next()) else { return None };
    let (from, to) = ((*relay.start()).max(first), (*relay.end()).min(last));
    let is_reserved = |port: u16| {
        reserved.trim().split(',').any(|range| {
            let (start, end) = range.split_once('-').unwrap_or((range, range));
            matches!((start.parse::<u16>(), end.parse::<u16>()), (Ok(start), Ok(end)) if (start..=end).contains(&port))
        })
    };
    let taken = (from..=to).filter(|port| !is_reserved(*port)).count();
    (from <= to && taken > 0).then(|| {
        format!(
            "net.ipv4.ip_local_port_range: {first}-{last} overlaps relay.ports in {taken} ports, which other programs may then hold; sysctl net.ipv4.ip_local_reserved_ports={}-{}",
            relay.start(),
            relay.end()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_is_told_unless_the_ports_are_reserved() {
        let told = |local, reserved| ports(&(49_152..=65_535), local, reserved);
        let advice = told("32768\t60999\n", "\n").unwrap();
        assert!(advice.contains("11848 ports") && advice.contains("ip_local_reserved_ports=49152-65535"), "{advice}");
        assert!(told("32768 60999", "1,50000-65535").unwrap().contains("848 ports"));
        for (local, reserved) in [("32768 49151", ""), ("32768 60999", "49152-65535"), ("", ""), ("x y", "")] {
            assert_eq!(told(local, reserved), None, "{local} {reserved}");
        }
    }

    #[test]
    fn a_small_buffer_is_told() {
        assert!(buffers(Some(212_992), 4 << 20).unwrap().contains("rmem_max=4194304"));
        assert_eq!(buffers(Some(4 << 20), 4 << 20), None);
        assert_eq!(buffers(None, 4 << 20), None);
    }
}
