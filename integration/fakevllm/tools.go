package fakevllm

import "slices"

// checkTools checks tools and tool_choice.
func (o object) checkTools() error {
	var names []string
	if o.has("tools") {
		tools, err := array(o["tools"])
		if err != nil || len(tools) == 0 {
			return badRequest("`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.")
		}
		for n, raw := range tools {
			tool, _ := parseObject(raw)
			name, err := functionName(tool)
			if err != nil {
				return badRequest("tools[%d]: %v", n, err)
			}
			names = append(names, name)
		}
	}
	if !o.has("tool_choice") || o.is("tool_choice", `"none"`) {
		return nil
	}
	if names == nil {
		return badRequest("When using `tool_choice`, `tools` must be set.")
	}
	if o.is("tool_choice", `"auto"`) || o.is("tool_choice", `"required"`) {
		return nil
	}
	choice, err := parseObject(o["tool_choice"])
	if err != nil {
		return badRequest("Invalid value for `tool_choice`: %s!", shortened(o["tool_choice"]))
	}
	name, err := functionName(choice)
	if err != nil {
		return badRequest("tool_choice: %v", err)
	}
	if !slices.Contains(names, name) {
		return badRequest("The tool specified in `tool_choice` does not match any of the specified `tools`")
	}
	return nil
}

// functionName returns the name of the function in a tool or in tool_choice.
func functionName(tool object) (string, error) {
	function, err := parseObject(tool["function"])
	if err != nil {
		return "", within("function", err)
	}
	return function.text("name")
}
