package body

import (
	"bytes"
	"fmt"
	"strings"
)

// maxMembers and maxNames are how many members an object may have that is checked
// for duplicates, and how many bytes of names. Names cost far more memory than the
// bytes that they are made of.
const (
	maxMembers = 1000
	maxNames   = 1 << 20
)

// names is the set of member names seen in one object. Objects have few members, unless
// somebody means harm: then the map keeps the check linear.
type names struct {
	few   [16][]byte
	more  map[string]bool
	count int
	size  int // in bytes, as written
}

// add adds the name at a range, and returns it unescaped. It is an error if the name is not new,
// or if there may be no more.
func (n *names) add(s *Scanner, raw Range) ([]byte, error) {
	if n.size += raw.End - raw.Start; n.size > maxNames {
		return nil, &Error{Message: fmt.Sprintf("the names of an object's members have more than %d bytes, at byte %d", maxNames, raw.Start)}
	}
	if n.count == maxMembers {
		return nil, &Error{Message: fmt.Sprintf("an object has more than %d members, at byte %d", maxMembers, raw.Start)}
	}
	name := Unescape(s.b[raw.Start+1 : raw.End-1])
	for _, have := range n.few[:min(n.count, len(n.few))] {
		if bytes.Equal(have, name) {
			return nil, duplicate(name, raw.Start)
		}
	}
	switch {
	case n.count < len(n.few):
		n.few[n.count] = name
	case n.more[string(name)]:
		return nil, duplicate(name, raw.Start)
	case n.more == nil:
		n.more = map[string]bool{string(name): true}
	default:
		n.more[string(name)] = true
	}
	n.count++
	return name, nil
}

// duplicate names the member if its name looks like one of a protocol: anything
// else may be content, which does not belong in an error.
func duplicate(name []byte, at int) error {
	member := "member"
	if len(name) <= 32 && strings.Trim(string(name), "abcdefghijklmnopqrstuvwxyz_") == "" {
		member = "member '" + string(name) + "'"
	}
	return &Error{Message: fmt.Sprintf("the %s at byte %d is given twice in one object", member, at)}
}
