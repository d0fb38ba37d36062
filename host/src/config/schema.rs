//! The JSON Schema of a configuration file, for editors and for the documentation.

use schemars::{JsonSchema, Schema, generate::SchemaSettings, transform::transform_subschemas};
use serde_json::Value;

/// The schema of `T` as a file: draft 07, which every editor knows, and all in one piece.
pub fn schema<T: JsonSchema>() -> String {
    let mut settings = SchemaSettings::draft07().with_transform(tidy);
    settings.inline_subschemas = true;
    let schema = settings.into_generator().into_root_schema_for::<T>();
    format!("{:#}\n", schema.to_value())
}

/// Takes out what says nothing to people: that a key may be left out is told by its not being required, how wide a number
/// is in memory is nobody's concern, and where a line of a comment ends neither.
fn tidy(schema: &mut Schema) {
    if schema.get("default") == Some(&Value::Null) {
        schema.remove("default");
    }
    schema.remove("format");
    if let Some(Value::String(description)) = schema.get_mut("description") {
        *description = description.replace('\n', " ");
    }
    transform_subschemas(&mut tidy, schema);
}
