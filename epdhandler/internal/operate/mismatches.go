package operate

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// mismatches lists differences that break requests: a request names one model for all stages,
// embeddings and KV blocks may be read only by the version that made them, and any instance of a
// pool may get a request.
func mismatches(findings []finding) (lines []string) {
	for _, aspect := range []struct {
		what   func(finding) string
		differ string
	}{
		{func(f finding) string { return f.models }, "serve different models"},
		{func(f finding) string { return f.version }, "run different versions of vLLM"},
	} {
		var agreed []finding // one of each pool whose instances do not differ
		for _, stage := range telemetry.Stages() {
			pool := slices.DeleteFunc(slices.Clone(findings), func(f finding) bool { return f.Pool.Stage != stage })
			if differ := differences(pool, aspect.what, engine.Target.Address); differ != "" {
				lines = append(lines, fmt.Sprintf("the instances of %s %s: %s", stage, aspect.differ, differ))
			} else if i := slices.IndexFunc(pool, func(f finding) bool { return aspect.what(f) != "" }); i >= 0 {
				agreed = append(agreed, pool[i])
			}
		}
		if differ := differences(agreed, aspect.what, func(t engine.Target) string { return t.Pool.Stage }); differ != "" {
			lines = append(lines, fmt.Sprintf("the pools %s: %s", aspect.differ, differ))
		}
	}
	return append(append(lines, tooOld(findings)...), inSeveral(findings)...)
}

// tooOld lists the engines that cannot take embeddings from an encoder. vLLM can since 0.11.1.
func tooOld(findings []finding) (lines []string) {
	for _, f := range findings {
		var major, minor, patch int
		_, _ = fmt.Sscanf(f.version, "%d.%d.%d", &major, &minor, &patch) // what is missing is 0
		if f.version != "" && slices.Compare([]int{major, minor, patch}, []int{0, 11, 1}) < 0 {
			lines = append(lines, fmt.Sprintf("%s %s runs vLLM %s, which knows no encoders: 0.11.1 is the first", f.Pool.Stage, f.Address(), f.version))
		}
	}
	return lines
}

// inSeveral lists the instances that are in several pools, although an engine has one role.
func inSeveral(findings []finding) (lines []string) {
	stages := make(map[string]string)
	for _, f := range findings {
		if f.Upstream == nil {
			continue // the instances of the pool are not known
		}
		if stage, known := stages[f.Address()]; known && stage != f.Pool.Stage {
			lines = append(lines, fmt.Sprintf("%s is in the pools %s and %s, but an engine has one role", f.Address(), stage, f.Pool.Stage))
		}
		stages[f.Address()] = f.Pool.Stage
	}
	return lines
}

// differences lists the values with those who have them, if there are several values. Empty ones
// do not count.
func differences(findings []finding, what func(finding) string, who func(engine.Target) string) string {
	have := make(map[string][]string)
	for _, f := range findings {
		if v := what(f); v != "" {
			have[v] = append(have[v], who(f.Target))
		}
	}
	if len(have) < 2 {
		return ""
	}
	var groups []string
	for _, v := range slices.Sorted(maps.Keys(have)) {
		groups = append(groups, fmt.Sprintf("%s (%s)", v, strings.Join(have[v], " ")))
	}
	return strings.Join(groups, ", ")
}
