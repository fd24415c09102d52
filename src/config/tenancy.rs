//! `realm` and `tenant` of listeners, and the split of `relay.ports` among tenants.

use std::ops::RangeInclusive;
use std::sync::Arc;

use hashbrown::HashSet;

use crate::config::check::Check;
use crate::config::document::{self, Node, TableEntry, Value};
use crate::config::error::Problem;
use crate::config::network::Listen;
use crate::config::units;
use crate::protocol::settings::AuthSettings;
use crate::protocol::tenancy::{PortPart, PortParts, Tenancy};

/// RFC 8489 section 14.9: a realm has fewer than 128 characters.
const REALM_CHARACTERS_MAX: usize = 127;

impl Check {
    /// A realm, wherever one is named. [8489-14.9-1]
    pub(crate) fn realm_of(&mut self, node: &Node, text: &str, or_else: &str) -> Option<Box<str>> {
        let characters = text.chars().count();
        let message = if text.is_empty() {
            format!("must not be empty; {or_else}")
        } else if characters > REALM_CHARACTERS_MAX {
            format!("has {characters} characters; at most {REALM_CHARACTERS_MAX} are allowed (RFC 8489 section 14.9)")
        } else if text.chars().any(|c| c.is_control() || c == '"' || c == '\\') {
            "must not contain control characters, quotes or backslashes (RFC 8489 section 14.9)".to_owned()
        } else {
            return Some(text.into());
        };
        self.wrong(node, message);
        None
    }

    /// `realm` and `tenant` of a listener; `None` if one of them is wrong.
    pub(crate) fn tenancy(&mut self, realm: Option<Node>, tenant: Option<Node>) -> Option<Arc<Tenancy>> {
        let realm = match realm {
            None => Some(None),
            Some(node) => {
                let text = self.text(&node);
                text.and_then(|text| self.realm_of(&node, &text, "leave it out for the realm of the server")).map(Some)
            }
        };
        let tenant = match tenant {
            None => Some(None),
            Some(node) => {
                let text = self.text(&node);
                text.and_then(|text| self.tenant_name(&node, &text)).map(Some)
            }
        };
        Some(Arc::new(Tenancy { realm: realm?, tenant: tenant? }))
    }

    /// `relay.ports_by_tenant`: parts of these ports that don't overlap.
    pub(crate) fn port_parts(&mut self, ports: &RangeInclusive<u16>) -> PortParts {
        let whole = self.get("relay.ports_by_tenant");
        let Value::Table(entries) = &whole.value else { return PortParts::default() };
        let mut parts: Vec<(Box<str>, PortPart)> = Vec::new();
        for TableEntry { name, location, node } in entries {
            let key = Node { key: node.key.clone(), location: location.clone(), value: Value::Text(name.clone()) };
            let (Some(tenant), Some(text)) = (self.tenant_name(&key, name), self.text(node)) else { continue };
            let Some(part) = self.ok(node, units::ports(&text)) else { continue };
            if !(ports.contains(part.start()) && ports.contains(part.end())) {
                let message = format!(
                    "lies outside relay.ports = \"{}-{}\"; take ports of it, or widen relay.ports",
                    ports.start(),
                    ports.end()
                );
                self.wrong(node, message);
                continue;
            }
            let part = PortPart { first: *part.start(), last: *part.end() };
            let clash = parts.iter().find(|(_, other)| part.first <= other.last && other.first <= part.last);
            if let Some((other, PortPart { first, last })) = clash {
                let other = document::quote(other);
                let message =
                    format!("overlaps with {other} = \"{first}-{last}\": a port is one tenant's; move one of the two");
                self.wrong(node, message);
                continue;
            }
            parts.push((tenant, part));
        }
        let taken: usize = parts.iter().map(|(_, part)| usize::from(part.last - part.first) + 1).sum();
        if taken > usize::from(ports.end() - ports.start()) {
            let message = format!(
                "takes all of relay.ports = \"{}-{}\", so sessions of other tenants and of none are refused with 508; leave ports to \
                 them",
                ports.start(),
                ports.end()
            );
            self.notes.push(Problem::new(whole.location, &whole.key, message));
        }
        PortParts::new(parts)
    }

    /// Warns of users of realms that no listener has.
    pub(crate) fn realms_need_a_listener(&mut self, auth: &AuthSettings, realm: &str, listen: &[(Listen, Node)]) {
        let known: HashSet<&str> = listen.iter().filter_map(|(of, _)| of.tenancy.realm.as_deref()).collect();
        let unknown = auth.realms.iter().filter(|of| *of.realm != *realm && !known.contains(&*of.realm));
        let messages: Vec<String> = unknown
            .map(|of| {
                let (name, realm) = (of.names().first().copied().unwrap_or_default().to_owned(), &of.realm);
                format!(
                    "no listener has the realm \"{realm}\" of {}, so they can't log in; write realm = \"{realm}\" in an entry of \
                     [listen], or correct it",
                    document::bare_or_quoted(&name)
                )
            })
            .collect();
        let location = self.get("auth.users").location;
        self.notes.extend(messages.into_iter().map(|text| Problem::new(location.clone(), "auth.users", text)));
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn said(text: &str) -> String {
        match Config::with_a_secret(text) {
            Ok(config) => config.warnings.iter().map(|note| format!("warning: {note}\n")).collect(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn parts_of_ports_lie_inside_and_do_not_overlap() {
        let parts = |text: &str| said(&format!("relay.ports = \"50000-50099\"\nrelay.ports_by_tenant = {text}"));
        assert_eq!(parts("{ a = \"50000-50009\", \"b c\" = \"50010-50010\" }"), "");
        for (text, says) in [
            ("{ a = \"49999-50009\" }", "lies outside relay.ports = \"50000-50099\"; take ports of it"),
            ("{ a = \"50090-50100\" }", "relay.ports_by_tenant.a = \"50090-50100\": lies outside"),
            (
                "{ a = \"50000-50009\", b = \"50009-50010\" }",
                "relay.ports_by_tenant.b = \"50009-50010\": overlaps with \"a\" = \"50000-50009\"",
            ),
            ("{ a = \"50009-50000\" }", "the first port is above the last; write \"50000-50009\""),
            ("{ a = 5 }", "expected a string in quotes"),
            ("{ \"\" = \"50000-50009\" }", "a tenant's name has 1 to"),
            ("\"50000-50009\"", "expected a table such as"),
            ("{ a = \"50000-50099\" }", "sessions of other tenants and of none are refused with 508"),
        ] {
            let said = parts(text);
            assert!(said.contains(says), "{text}: {said}");
        }
        let config = Config::with_a_secret("relay.ports_by_tenant = { a = \"50000-50009\" }").unwrap();
        let parts: Vec<_> =
            config.relay.port_parts.iter().map(|(tenant, part)| (tenant, part.first, part.last)).collect();
        assert_eq!(parts, [("a", 50_000, 50_009)]);
    }

    #[test]
    fn a_listener_has_a_realm_and_a_tenant_of_its_own() {
        let config = Config::with_a_secret(
            "listen.udp = [{ address = \"127.0.0.1:3478\", realm = \"b.example\", tenant = \"b\" }, \"127.0.0.1:3479\"]\nlisten.tcp = []",
        )
        .unwrap();
        let of: Vec<_> =
            config.listen.iter().map(|of| (of.tenancy.realm.as_deref(), of.tenancy.tenant.as_deref())).collect();
        assert_eq!(of, [(Some("b.example"), Some("b")), (None, None)]);
        for (fields, says) in [
            ("realm = \"\"", "must not be empty; leave it out for the realm of the server"),
            ("realm = 5", "expected a string in quotes"),
            ("realm = 'a\"b'", "must not contain control characters, quotes or backslashes"),
            ("tenant = \"\"", "a tenant's name has 1 to"),
            ("tenants = \"b\"", "did you mean `tenant`?"),
        ] {
            let text = format!("listen.udp = [{{ address = \"127.0.0.1:3478\", {fields} }}]");
            let said = said(&text);
            assert!(said.contains("listen.udp") && said.contains(says), "{fields}: {said}");
        }
    }

    #[test]
    fn a_user_name_may_stand_in_several_realms_once_in_each() {
        let users = |text: &str| {
            said(&format!(
                "realm = \"a.example\"\nlisten.udp = [{{ address = \"127.0.0.1:3478\", realm = \"b.example\" }}]\nauth.users.bob = {text}"
            ))
        };
        let password = "password = \"wonderland-wonderland\"";
        let of = |realm: &str| format!("{{ {password}, realm = \"{realm}\" }}");
        assert_eq!(users(&format!("[{{ {password} }}, {}]", of("b.example"))), "");
        assert_eq!(users(&of("a.example")), "");
        for (text, says) in [
            (format!("[{{ {password} }}, {}]", of("a.example")), "is there twice for the realm \"a.example\""),
            (format!("[{}, {}]", of("b.example"), of("b.example")), "is there twice for the realm \"b.example\""),
            (of("c.example"), "no listener has the realm \"c.example\" of bob"),
            ("[]".to_owned(), "is an empty list"),
            ("[\"wonderland-wonderland\"]".to_owned(), "a list has a table for each realm"),
        ] {
            let said = users(&text);
            assert!(said.contains(says), "{text}: {said}");
        }
    }

    #[test]
    fn a_user_of_another_realm_is_no_user_of_the_servers_own() {
        let text = "realm = \"a.example\"\nlisten.udp = [{ address = \"127.0.0.1:3478\", realm = \"c.example\" }]\n\
                    auth.users.bob = [{ password = \"wonderland-wonderland\" }, { realm = \"b.example\", password = \"looking-glass-of-b\" }]\n\
                    auth.users.amy = { realm = \"a.example\", password = \"through-the-glass\" }";
        let config = Config::with_a_secret(text).unwrap();
        let settings = config.settings(Default::default(), true, true).unwrap();
        assert_eq!(settings.auth.names(), ["amy", "bob"]);
        let realms: Vec<_> = settings.auth.realms.iter().map(|of| (&*of.realm, of.names())).collect();
        assert_eq!(realms, [("b.example", vec!["bob"]), ("c.example", vec![])]);
        assert_eq!(settings.auth.user_count(), 3);
    }
}
