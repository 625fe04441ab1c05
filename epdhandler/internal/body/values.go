package body

// Members are the members of an object, in order.
type Members []Entry

// An Entry is one member of an object, as written.
type Entry struct {
	Name  []byte // with quotes
	Value []byte
}

// Value returns the value of the member of this name, nil if there is none.
func (m Members) Value(name string) []byte {
	for _, e := range m {
		if IsString(e.Name, name) {
			return e.Value
		}
	}
	return nil
}

// MembersOf returns the members of a JSON object. Any other value is an error, as is a member given twice.
func MembersOf(object []byte) (Members, error) {
	s := &Scanner{b: object}
	if s.Peek() != '{' {
		return nil, &Error{Message: "not a JSON object"}
	}
	members, err := s.members()
	if err != nil {
		return nil, err
	}
	return members, s.end()
}

func (s *Scanner) members() (members Members, err error) {
	err = s.Object(func(m Member) error {
		start := s.i
		err := s.Value()
		members = append(members, Entry{Name: s.b[m.Raw.Start:m.Raw.End], Value: s.b[start:s.i]})
		return err
	})
	return members, err
}

// The functions below expect a value as a body holds it: valid, and without space around it.

// Given reports whether there is a value, other than null.
func Given(value []byte) bool { return value != nil && string(value) != "null" }

// IsBool reports whether a value is true or false.
func IsBool(value []byte) bool { return string(value) == "true" || string(value) == "false" }

// IsObject reports whether a value is an object.
func IsObject(value []byte) bool { return len(value) > 0 && value[0] == '{' }

// IsString reports whether a value is a string that stands for s.
func IsString(value []byte, s string) bool {
	// what is longer than the longest way to write it need not be looked at
	return len(value) >= 2 && len(value) <= 2+len(`\u0000`)*len(s) && value[0] == '"' && string(Unescape(value[1:len(value)-1])) == s
}

// IsSeveral reports whether a value is a list of several strings or lists. Numbers are the tokens of one.
func IsSeveral(value []byte) bool {
	s := &Scanner{b: value}
	if s.Peek() != '[' {
		return false
	}
	s.i++
	if c := s.Peek(); c != '"' && c != '[' {
		return false
	}
	return s.Value() == nil && s.Peek() == ','
}

// HoldsText reports whether there is a string anywhere in a value, other than as a name.
func HoldsText(value []byte) bool {
	for s := (&Scanner{b: value}); s.i < len(value); {
		if value[s.i] != '"' {
			s.i++
		} else if _, err := s.Text(); err != nil || s.Peek() != ':' {
			return true
		}
	}
	return false
}
