package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// documents returns the texts of all Markdown files, by their paths.
func documents(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	require.NoError(t, filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".md" {
			return err
		}
		text, err := os.ReadFile(path)
		all[path] = string(text)
		return err
	}))
	require.Contains(t, all, "../README.md")
	return all
}

// fence is a block of code with its language.
var fence = regexp.MustCompile("(?m)^ *```(.*)\n(?s:(.*?))^ *```\n")

// caddyfiles returns all Caddyfiles of the documents. "in site" after the language
// says that a block is part of a site, "in epd_proxy" that it is part of the
// directive's block.
func caddyfiles(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for path, text := range documents(t) {
		for n, block := range fence.FindAllStringSubmatch(text, -1) {
			language, in, _ := strings.Cut(block[1], " ")
			if language != "caddyfile" {
				continue
			}
			code := block[2]
			switch in {
			case "":
			case "in epd_proxy":
				for _, pool := range []string{"encode", "decode"} {
					if !strings.Contains("\n"+code, "\n"+pool+" ") {
						code = pool + " localhost:1\n" + code
					}
				}
				code = "epd_proxy {\n" + code + "}\n"
				fallthrough
			case "in site":
				code = "example.com {\n" + code + "}\n"
			default:
				assert.Failf(t, "unknown place of a Caddyfile", "%s: write 'in site' or 'in epd_proxy', not '%s'", path, in)
			}
			all[fmt.Sprintf("%s:%d", strings.ReplaceAll(strings.TrimPrefix(path, "../"), "/", "_"), n+1)] = code
		}
	}
	return all
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notSlug = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// anchors returns the anchors that GitHub gives the headings of a document.
func anchors(text string) map[string]bool {
	all := make(map[string]bool)
	for _, h := range heading.FindAllStringSubmatch(text, -1) {
		base := strings.ReplaceAll(notSlug.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-")
		slug := base
		for n := 1; all[slug]; n++ {
			slug = fmt.Sprintf("%s-%d", base, n)
		}
		all[slug] = true
	}
	return all
}

// Every link within the repository has a target.
func TestLinks(t *testing.T) {
	t.Parallel()
	texts := documents(t)
	for path, text := range texts {
		texts[path] = fence.ReplaceAllString(text, "")
	}
	for path, text := range texts {
		for _, l := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(l[1], "://") {
				continue
			}
			file, anchor, _ := strings.Cut(l[1], "#")
			to := path
			if file != "" {
				to = filepath.Join(filepath.Dir(path), file)
			}
			_, err := os.Stat(to)
			assert.NoError(t, err, "%s links to %s", path, l[1])
			if anchor != "" {
				assert.True(t, anchors(texts[to])[anchor], "%s links to %s, but there is no such heading", path, l[1])
			}
		}
	}
}

// The tests that the documents name exist; an ellipsis stands for the rest of several names.
func TestNamedTests(t *testing.T) {
	t.Parallel()
	var code strings.Builder
	require.NoError(t, filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		code.Write(text)
		return err
	}))
	named := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w*)(…?)[/`]")
	found := 0
	for path, text := range documents(t) {
		for _, name := range named.FindAllStringSubmatch(text, -1) {
			end := "("
			if name[2] != "" {
				end = ""
			}
			found++
			assert.True(t, strings.Contains(code.String(), "func "+name[1]+end), "%s names %s", path, name[1])
		}
	}
	assert.NotZero(t, found)
}
