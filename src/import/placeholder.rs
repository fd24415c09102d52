//! Values that are not filled in yet: variables of a shell or of a template.

/// The first placeholder in a value: `${NAME}`, `$NAME`, `{{ name }}`, `%NAME%`, `__NAME__` or `<name>`.
///
/// A dollar sign begins one only where a part of the value begins, as passwords may hold one.
#[must_use]
pub fn find(value: &str) -> Option<&str> {
    for (open, close) in [("${", "}"), ("$(", ")"), ("{{", "}}"), ("<", ">"), ("@@", "@@")] {
        if let Some(start) = value.find(open)
            && let Some(length) = value[start + open.len()..].find(close)
            && length > 0
        {
            return Some(&value[start..start + open.len() + length + close.len()]);
        }
    }
    value.split([':', '/', ',', ' ']).find(|part| is_variable(part))
}

fn is_variable(part: &str) -> bool {
    let is_name = |name: &str| {
        let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
        starts_well && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let is_upper = |name: &str| is_name(name) && !name.bytes().any(|byte| byte.is_ascii_lowercase());
    part.strip_prefix('$').is_some_and(is_name)
        || part.strip_prefix("__").and_then(|rest| rest.strip_suffix("__")).is_some_and(is_upper)
        || part.strip_prefix('%').and_then(|rest| rest.strip_suffix('%')).is_some_and(is_upper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_told_from_values() {
        for (value, found) in [
            ("${SECRET}", Some("${SECRET}")),
            ("$EXTERNAL_IP/$INTERNAL_IP", Some("$EXTERNAL_IP")),
            ("203.0.113.7/$INTERNAL_IP", Some("$INTERNAL_IP")),
            ("{{ turn_secret }}", Some("{{ turn_secret }}")),
            ("__REALM__", Some("__REALM__")),
            ("<your ip>", Some("<your ip>")),
            ("%DOMAIN%", Some("%DOMAIN%")),
            ("$(curl -s ifconfig.example)", Some("$(curl -s ifconfig.example)")),
            ("bob:pa$$word", None),
            ("secret$", None),
            ("a<b", None),
            ("__init__", None),
            ("100%", None),
            ("{}", None),
            ("", None),
        ] {
            assert_eq!(find(value), found, "{value}");
        }
    }
}
