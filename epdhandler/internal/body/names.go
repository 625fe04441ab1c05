package body

import (
	"bytes"
	"fmt"
)

// maxMembers and maxNames are how many members an object may have that is checked
// for duplicates, and how many bytes of names. Names cost far more memory than the
// bytes that they are made of.
const (
	maxMembers = 1000
	maxNames   = 1 << 20
)

// names is the set of member names seen in one object. Objects have few
// members, unless somebody means harm: then the map keeps the check linear.
type names struct {
	few  [16][]byte
	n    int
	many map[string]struct{}
	size int // of all, as written
}

// check refuses the name at a range if there may be no more.
func (s *names) check(r Range) error {
	if len(s.many) >= maxMembers {
		return &Error{Message: fmt.Sprintf("an object has more than %d members, at byte %d", maxMembers, r.Start)}
	}
	if s.size += r.End - r.Start; s.size > maxNames {
		return &Error{Message: fmt.Sprintf("the names of an object's members have more than %d bytes, at byte %d", maxNames, r.Start)}
	}
	return nil
}

// add reports whether name is new.
func (s *names) add(name []byte) bool {
	if s.many != nil {
		if _, ok := s.many[string(name)]; ok {
			return false
		}
		s.many[string(name)] = struct{}{}
		return true
	}
	for _, have := range s.few[:s.n] {
		if bytes.Equal(have, name) {
			return false
		}
	}
	if s.n < len(s.few) {
		s.few[s.n] = name
		s.n++
		return true
	}
	s.many = make(map[string]struct{}, 2*len(s.few))
	for _, have := range s.few {
		s.many[string(have)] = struct{}{}
	}
	s.many[string(name)] = struct{}{}
	return true
}
