package epdhandler

import (
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const module = "github.com/caddy-epd/caddy-epd/"

// Packages import only what the table of the architecture page allows, every allowed import
// is used, and imports only go down the table.
func TestImports(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/architecture.md")
	require.NoError(t, err)
	row := regexp.MustCompile("(?m)^\\| `(\\w+)` \\|[^|]+\\| ([^|]+) \\|$")
	name := regexp.MustCompile("`(\\w+)`")
	allowed, order := make(map[string][]string), make(map[string]int)
	for i, r := range row.FindAllStringSubmatch(string(page), -1) {
		order[r[1]] = i
		allowed[r[1]] = []string{}
		for _, n := range name.FindAllStringSubmatch(r[2], -1) {
			allowed[r[1]] = append(allowed[r[1]], n[1])
		}
	}
	dirs, err := filepath.Glob("internal/*")
	require.NoError(t, err)
	require.Len(t, allowed, len(dirs)+2, "packages in the table")
	for _, dir := range append(dirs, ".", "../caddyfile") {
		pkg := path.Base(dir)
		if dir == "." {
			pkg = "epdhandler"
		}
		imports := importsOf(t, dir)
		require.Contains(t, allowed, pkg)
		if pkg != "epdhandler" {
			assert.ElementsMatch(t, allowed[pkg], imports, "imports of %s", pkg)
		}
		for _, i := range imports {
			assert.Greater(t, order[i], order[pkg], "%s imports %s, which is above it", pkg, i)
		}
	}
}

// importsOf returns the packages of this module that the package in a directory imports.
func importsOf(t *testing.T, dir string) (names []string) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(t, err)
	seen := make(map[string]bool)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		require.NoError(t, err)
		for _, i := range f.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			require.NoError(t, err)
			if name := path.Base(p); strings.HasPrefix(p, module) && !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	return names
}
