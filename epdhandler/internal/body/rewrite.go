package body

import (
	"slices"
)

// An Edit changes one field of a body; see [Set] and [Remove].
type Edit struct {
	field Field
	value []byte // nil removes
}

// Set gives a field another value, which must be valid JSON: where it stands if
// the body has it, else at the end.
func Set[T string | []byte](f Field, value T) Edit { return Edit{f, []byte(value)} }

// Remove takes a field out, if the body has it.
func Remove(f Field) Edit { return Edit{f, nil} }

// Rewrite returns the body with the edits applied, at most one for each field.
// All else stays byte for byte as it is.
func (b *Body) Rewrite(edits ...Edit) *Segments {
	var here, added []Edit
	for _, e := range edits {
		switch {
		case b.Has(e.field):
			here = append(here, e)
		case e.value != nil:
			added = append(added, e)
		}
	}
	slices.SortFunc(here, func(x, y Edit) int { return b.fields[x.field].before - b.fields[y.field].before })

	w := rewriter{body: b, pos: b.open + 1, parts: make([][]byte, 0, 3*len(edits)+2*len(b.patches)+4)}
	w.parts = append(w.parts, []byte("{"))
	for _, e := range here {
		p := b.fields[e.field]
		if e.value != nil {
			w.keep(p.value.Start)
			w.parts = append(w.parts, e.value)
			w.pos = p.value.End
			continue
		}
		// between two removed members there is nothing to keep
		if w.inRun || p.before != w.pos-1 {
			w.keep(p.before)
		}
		w.inRun = false
		w.pos = p.after + 1
	}
	if w.inRun || w.pos <= b.close && !b.empty {
		w.keep(b.close)
	}
	w.inRun = false
	for _, e := range added {
		w.join()
		w.parts = append(w.parts, e.field.key(), e.value)
	}
	w.parts = append(w.parts, []byte("}"))
	return b.Join(w.parts...)
}

// rewriter assembles an object from runs: stretches of the old one that hold
// whole members, without the comma before and behind.
type rewriter struct {
	body  *Body
	parts [][]byte
	pos   int  // what is before is dealt with
	inRun bool // pos is in a run that has been begun
	any   bool // there is a member already
}

// keep takes over what is between pos and end.
func (w *rewriter) keep(end int) {
	if !w.inRun {
		w.join()
		w.inRun = true
	}
	w.parts = w.body.AppendPieces(w.parts, Range{w.pos, end})
	w.pos = end
}

func (w *rewriter) join() {
	if w.any {
		w.parts = append(w.parts, []byte(","))
	}
	w.any = true
}
