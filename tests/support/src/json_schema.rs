//! The schema that `throughway config schema` prints, read by a validator that is not ours.

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::{Value, json};

pub struct Validator {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Validator {
    pub fn new() -> Self {
        let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
        compiler.add_resource("config.schema.json", throughway::config::schema::schema()).unwrap();
        let index = compiler.compile("config.schema.json", &mut schemas).expect("it is a schema");
        Self { schemas, index }
    }

    /// What is wrong with a configuration as far as the schema knows.
    pub fn check(&self, toml: &str) -> Result<(), String> {
        let table: toml::Table = toml.parse().map_err(|error| format!("{error}"))?;
        self.schemas.validate(&of_toml(&toml::Value::Table(table)), self.index).map_err(|error| format!("{error:#}"))
    }
}

/// As editors show TOML to a schema: a point in time is its text.
fn of_toml(value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) => json!(text),
        toml::Value::Integer(number) => json!(number),
        toml::Value::Float(number) => json!(number),
        toml::Value::Boolean(is_true) => json!(is_true),
        toml::Value::Datetime(time) => json!(time.to_string()),
        toml::Value::Array(items) => items.iter().map(of_toml).collect(),
        toml::Value::Table(fields) => fields.iter().map(|(name, value)| (name.clone(), of_toml(value))).collect(),
    }
}
