//! The report: one flat JSON object.

pub struct Object(String);

impl Object {
    pub fn new() -> Self {
        Self(String::from("{"))
    }

    fn key(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push_str(", ");
        }
        self.0.push('"');
        self.0.push_str(name);
        self.0.push_str("\": ");
    }

    pub fn count(&mut self, name: &str, value: u64) -> &mut Self {
        self.key(name);
        self.0.push_str(&value.to_string());
        self
    }

    pub fn real(&mut self, name: &str, value: f64) -> &mut Self {
        self.key(name);
        if value.is_finite() {
            self.0.push_str(&format!("{value:.3}"));
        } else {
            self.0.push_str("null");
        }
        self
    }

    pub fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.key(name);
        self.0.push('"');
        for c in value.chars() {
            match c {
                '"' | '\\' => self.0.extend(['\\', c]),
                c if c < ' ' => self.0.push_str(&format!("\\u{:04x}", u32::from(c))),
                c => self.0.push(c),
            }
        }
        self.0.push('"');
        self
    }

    pub fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_a_missing_figure_is_null() {
        let mut object = Object::new();
        object.text("a", "x\"\\\n").count("b", 3).real("c", f64::NAN);
        assert_eq!(object.finish(), r#"{"a": "x\"\\\u000a", "b": 3, "c": null}"#);
    }
}
