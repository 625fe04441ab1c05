package fakevllm

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp/syntax"
	"slices"
	"strings"
)

// constraintKinds are the members of structured_outputs that constrain an answer.
var constraintKinds = []string{"json", "regex", "choice", "grammar", "json_object", "structural_tag"}

// checkConstraints allows at most one constraint, and none together with a named tool_choice.
func (o object) checkConstraints() error {
	format, _ := parseObject(o["response_format"])
	if format.is("type", `"json_schema"`) && !format.has("json_schema") {
		return badRequest("When response_format type is 'json_schema', the 'json_schema' field must be provided.")
	}
	if !o.has("structured_outputs") {
		return nil
	}
	constraint, err := parseObject(o["structured_outputs"])
	if err != nil {
		return badRequest("structured_outputs: %v", err)
	}
	kinds := slices.DeleteFunc(slices.Clone(constraintKinds), not(constraint.has))
	if len(kinds) != 1 {
		return badRequest("You must use one kind of structured outputs constraint, got %q", kinds)
	}
	if choice := o["tool_choice"]; len(choice) > 0 && choice[0] == '{' {
		return badRequest("You can only either use constraints for structured outputs or tools, not both.")
	}
	return nil
}

// verifyConstraint rejects constraints that vLLM cannot compile to a grammar, as far as clients send them.
func (o object) verifyConstraint() error {
	constraint, _ := parseObject(o["structured_outputs"])
	if format, _ := parseObject(o["response_format"]); format.is("type", `"json_schema"`) {
		named, _ := parseObject(format["json_schema"])
		constraint = object{"json": named["schema"]}
	}
	if regex, given := stringOf(constraint["regex"]); given {
		if _, err := syntax.Parse(regex, syntax.Perl); err != nil {
			return lateRefusal("Failed to transform regex into a grammar: %v", err)
		}
	}
	if grammar, given := stringOf(constraint["grammar"]); given && strings.TrimSpace(grammar) == "" {
		return lateRefusal("structured_outputs.grammar cannot be an empty string")
	}
	if constraint.is("choice", "[]") {
		return lateRefusal("Choice '[]' cannot be an empty list")
	}
	schema := constraint["json"]
	if text, isString := stringOf(schema); isString {
		if schema = json.RawMessage(text); !json.Valid(schema) {
			return lateRefusal("Invalid JSON grammar specification.")
		}
	}
	if err := checkSchema(schema); err != nil {
		return lateRefusal("Failed to transform json schema into a grammar: %v", err)
	}
	return nil
}

// schemaTypes are the types of JSON Schema.
var schemaTypes = []string{"null", "boolean", "object", "array", "number", "string", "integer"}

// checkSchema looks for types that JSON Schema does not have.
func checkSchema(raw json.RawMessage) error {
	schema, err := parseObject(raw)
	if err != nil {
		return nil // true and false are schemas too
	}
	types, err := array(schema["type"])
	if err != nil && schema.has("type") {
		types = []json.RawMessage{schema["type"]}
	}
	for _, t := range types {
		if name, _ := stringOf(t); !slices.Contains(schemaTypes, name) {
			return fmt.Errorf("unknown type: %s", t)
		}
	}
	for _, inner := range schema.subschemas() {
		if err := checkSchema(inner); err != nil {
			return err
		}
	}
	return nil
}

// subschemas are the schemas in a schema.
func (o object) subschemas() (all []json.RawMessage) {
	for _, name := range []string{"items", "additionalProperties", "not"} {
		if o.has(name) {
			all = append(all, o[name])
		}
	}
	for _, name := range []string{"anyOf", "allOf", "oneOf", "prefixItems"} {
		list, _ := array(o[name])
		all = append(all, list...)
	}
	for _, name := range []string{"properties", "patternProperties", "$defs", "definitions"} {
		named, _ := parseObject(o[name])
		all = slices.AppendSeq(all, maps.Values(named))
	}
	return all
}
