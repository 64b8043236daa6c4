package jinja

import (
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode"
)

// filters are Jinja's, but for those that make HTML and URLs.
var filters map[string]func(in *interp, v value, a args) value

func init() {
	textFilter := func(f func(in *interp, t Text, a args) value) func(in *interp, v value, a args) value {
		return func(in *interp, v value, a args) value {
			t := in.text(v)
			in.m.look(t)
			return f(in, t, a)
		}
	}
	filters = map[string]func(in *interp, v value, a args) value{
		"abs": func(in *interp, v value, a args) value {
			if f, ok := number(v); ok && f < 0 {
				return (&sign{&constant{v}, true}).eval(in, nil)
			} else if !ok {
				fail("abs of %s", kind(v))
			}
			return v
		},
		"attr":       func(in *interp, v value, a args) value { return in.attribute(v, wantText(a.must(0, "name")).s) },
		"batch":      func(in *interp, v value, a args) value { return in.batch(v, a) },
		"capitalize": textFilter(func(in *interp, t Text, a args) value { return in.capitalize(t) }),
		"center": textFilter(func(in *interp, t Text, a args) value {
			width := a.integer(0, "width", 80)
			return textMethods["center"](in, t, args{positional: []value{width}})
		}),
		"default":  defaulted,
		"d":        defaulted,
		"dictsort": func(in *interp, v value, a args) value { return in.sortDict(v, a) },
		"first":    func(in *interp, v value, a args) value { return end(in.items(v), 0) },
		"last": func(in *interp, v value, a args) value {
			items := in.items(v)
			return end(items, len(items)-1)
		},
		"float":   func(in *interp, v value, a args) value { return toFloat(v, a.or(0, "default", 0.0)) },
		"format":  textFilter(func(in *interp, t Text, a args) value { return in.percent(t, a) }),
		"groupby": func(in *interp, v value, a args) value { return in.groupBy(v, a) },
		"indent":  textFilter(func(in *interp, t Text, a args) value { return in.indent(t, a) }),
		"int": func(in *interp, v value, a args) value {
			return toInteger(v, a.or(0, "default", int64(0)), int(a.integer(1, "base", 10)))
		},
		"items": func(in *interp, v value, a args) value {
			switch d := v.(type) {
			case undefined:
				return &list{}
			case *dict:
				return in.pairs(d)
			}
			fail("items of %s", kind(v))
			return nil
		},
		"join": func(in *interp, v value, a args) value {
			a.only("d", "attribute")
			items := in.items(v)
			if by, ok := a.get(1, "attribute"); ok {
				items = in.mapItems(items, in.getter(by, nil))
			}
			return in.join(items, in.text(a.or(0, "d", Own(""))), false)
		},
		"length": func(in *interp, v value, a args) value { return in.length(v) },
		"count":  func(in *interp, v value, a args) value { return in.length(v) },
		"list":   func(in *interp, v value, a args) value { return in.newList(in.items(v)) },
		"lower":  textFilter(func(in *interp, t Text, a args) value { return in.mapped(t, lower) }),
		"upper":  textFilter(func(in *interp, t Text, a args) value { return in.mapped(t, upper) }),
		"map":    func(in *interp, v value, a args) value { return in.newList(in.mapItems(in.items(v), in.mapper(a))) },
		"max":    func(in *interp, v value, a args) value { return in.extreme(v, a, 1) },
		"min":    func(in *interp, v value, a args) value { return in.extreme(v, a, -1) },
		"reject": func(in *interp, v value, a args) value { return in.selected(v, a, false, false) },
		"select": func(in *interp, v value, a args) value { return in.selected(v, a, false, true) },
		"rejectattr": func(in *interp, v value, a args) value {
			return in.selected(v, a, true, false)
		},
		"selectattr": func(in *interp, v value, a args) value { return in.selected(v, a, true, true) },
		"replace": textFilter(func(in *interp, t Text, a args) value {
			return in.replace(t, in.text(a.must(0, "old")), in.text(a.must(1, "new")), a.integer(2, "count", -1))
		}),
		"reverse": func(in *interp, v value, a args) value { return in.reversed(v) },
		"round":   func(in *interp, v value, a args) value { return rounded(v, a) },
		"safe":    func(in *interp, v value, a args) value { return in.text(v) },
		"slice":   func(in *interp, v value, a args) value { return in.slices(v, a) },
		"sort":    func(in *interp, v value, a args) value { return in.sorted(v, a) },
		"string":  func(in *interp, v value, a args) value { return in.text(v) },
		"sum": func(in *interp, v value, a args) value {
			items := in.items(v)
			if by, ok := a.get(0, "attribute"); ok && by != nil {
				items = in.mapItems(items, in.getter(by, nil))
			}
			total := a.or(1, "start", int64(0))
			for _, item := range items {
				in.m.step(1)
				total = in.arithmetic("+", total, item)
			}
			return total
		},
		"title":    textFilter(func(in *interp, t Text, a args) value { return in.mapped(t, titled) }),
		"tojson":   func(in *interp, v value, a args) value { return in.toJSON(v, a) },
		"trim":     textFilter(func(in *interp, t Text, a args) value { return in.strip(t, a, true, true) }),
		"truncate": textFilter(func(in *interp, t Text, a args) value { return in.truncate(t, a) }),
		"unique":   func(in *interp, v value, a args) value { return in.unique(v, a) },
		"wordcount": textFilter(func(in *interp, t Text, a args) value {
			return int64(len(strings.FieldsFunc(t.s, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsNumber(r) && r != '_' })))
		}),
	}
}

func defaulted(in *interp, v value, a args) value {
	if _, missing := v.(undefined); missing || a.truth(1, "boolean", false) && !truth(v) {
		return a.or(0, "default_value", Own(""))
	}
	return v
}

func end(items []value, i int) value {
	if len(items) == 0 {
		return undefined{"an element of an empty list"}
	}
	return items[i]
}

func (in *interp) length(v value) value {
	switch v := v.(type) {
	case undefined:
		return int64(0)
	case Text:
		in.m.scan(len(v.s))
		return int64(v.chars())
	case *list:
		return int64(len(v.items))
	case *dict:
		return int64(len(v.keys))
	}
	fail("the length of %s", kind(v))
	return nil
}

func toFloat(v, absent value) value {
	if f, ok := number(v); ok {
		return f
	}
	if t, ok := v.(Text); ok {
		if f, err := strconv.ParseFloat(strings.TrimFunc(t.s, isSpace), 64); err == nil {
			return f
		}
	}
	return absent
}

func toInteger(v, absent value, base int) value {
	switch v := v.(type) {
	case bool, int64:
		return wantInt(v)
	case float64:
		if math.Abs(v) < 1<<63 {
			return int64(v)
		}
	case Text:
		s := strings.TrimFunc(v.s, isSpace)
		if base != 0 && base < 2 || base > 36 {
			return absent
		}
		if i, err := strconv.ParseInt(s, base, 64); err == nil {
			return i
		}
		if f, err := strconv.ParseFloat(s, 64); err == nil && math.Abs(f) < 1<<63 {
			return int64(f)
		}
	}
	return absent
}

// getter returns what takes an attribute, "a.b" and numbers included, out of an item.
func (in *interp) getter(by, absent value) func(item value) value {
	var path []value
	switch by := by.(type) {
	case int64:
		path = []value{by}
	default:
		for part := range strings.SplitSeq(wantText(by).s, ".") {
			in.m.elements(1)
			if i, err := strconv.ParseInt(part, 10, 64); err == nil {
				path = append(path, i)
			} else {
				path = append(path, Own(part))
			}
		}
	}
	return func(v value) value {
		for _, key := range path {
			in.m.step(1)
			v = in.item(v, key)
			if _, missing := v.(undefined); missing && absent != nil {
				return absent
			}
		}
		return v
	}
}

func (in *interp) mapItems(items []value, f func(v value) value) []value {
	in.m.elements(len(items))
	out := make([]value, len(items))
	for i, item := range items {
		out[i] = f(item)
	}
	return out
}

// mapper is what map applies: an attribute, or a filter with its arguments.
func (in *interp) mapper(a args) func(v value) value {
	if by, ok := a.get(len(a.positional), "attribute"); ok {
		return in.getter(by, a.or(len(a.positional), "default", nil))
	}
	name := wantText(a.must(0, "filter")).s
	f, ok := filters[name]
	if !ok {
		fail("unknown filter %q", name)
	}
	rest := args{a.positional[1:], a.names, a.named}
	return func(v value) value {
		in.enter()
		defer in.exit()
		in.m.step(1)
		return f(in, v, rest)
	}
}

func (in *interp) selected(v value, a args, byAttribute, wanted bool) value {
	get := func(v value) value { return v }
	if byAttribute {
		get = in.getter(a.must(0, "attribute"), nil)
		a.positional = a.positional[1:]
	}
	holds := func(in *interp, v value, a args) bool { return truth(v) }
	if len(a.positional) > 0 {
		name := wantText(a.positional[0]).s
		var ok bool
		if holds, ok = tests[name]; !ok {
			fail("unknown test %q", name)
		}
		a.positional = a.positional[1:]
	}
	var kept []value
	for _, item := range in.items(v) {
		in.m.step(1)
		if holds(in, get(item), a) == wanted {
			in.m.elements(1)
			kept = append(kept, item)
		}
	}
	return &list{items: kept}
}

func (in *interp) reversed(v value) value {
	items := slices.Clone(in.newList(in.items(v)).items)
	slices.Reverse(items)
	if _, ok := v.(Text); ok {
		return in.join(items, Own(""), true)
	}
	return &list{items: items}
}

// sortKey is what Jinja sorts by: an attribute, without case unless it is asked for.
func (in *interp) sortKey(by value, caseMatters bool) func(v value) value {
	get := func(v value) value { return v }
	if by != nil {
		get = in.getter(by, nil)
	}
	return func(v value) value {
		v = get(v)
		if t, ok := v.(Text); ok && !caseMatters {
			return in.mapped(t, lower)
		}
		return v
	}
}

// sortBy sorts items by keys, which it pays for at each comparison.
func (in *interp) sortBy(items []value, key func(v value) value, reverse bool) *list {
	keys := in.mapItems(items, key)
	order := make([]int, len(items))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(i, j int) bool {
		if reverse {
			i, j = j, i
		}
		return in.compare(keys[order[i]], keys[order[j]], "<") < 0
	})
	out := in.newList(make([]value, len(items)))
	for i, o := range order {
		out.items[i] = items[o]
	}
	return out
}

func (in *interp) sorted(v value, a args) value {
	a.only("reverse", "case_sensitive", "attribute")
	key := in.sortKey(a.or(2, "attribute", nil), a.truth(1, "case_sensitive", false))
	return in.sortBy(in.items(v), key, a.truth(0, "reverse", false))
}

func (in *interp) sortDict(v value, a args) value {
	a.only("case_sensitive", "by", "reverse")
	d, ok := v.(*dict)
	if !ok {
		fail("dictsort of %s", kind(v))
	}
	place := int64(0)
	switch by := a.text(1, "by", "key"); by.s {
	case "key":
	case "value":
		place = 1
	default:
		fail("dictsort by %q", by.s)
	}
	return in.sortBy(in.pairs(d).items, in.sortKey(place, a.truth(0, "case_sensitive", false)), a.truth(2, "reverse", false))
}

func (in *interp) extreme(v value, a args, sign int) value {
	a.only("case_sensitive", "attribute")
	key := in.sortKey(a.or(1, "attribute", nil), a.truth(0, "case_sensitive", false))
	var best, bestKey value = undefined{"the extreme of an empty list"}, nil
	for i, item := range in.items(v) {
		if k := key(item); i == 0 || in.compare(k, bestKey, "<")*sign == 1 {
			best, bestKey = item, k
		}
	}
	return best
}

func (in *interp) unique(v value, a args) value {
	a.only("case_sensitive", "attribute")
	key := in.sortKey(a.or(1, "attribute", nil), a.truth(0, "case_sensitive", false))
	seen := &dict{}
	var kept []value
	for _, item := range in.items(v) {
		in.m.elements(2)
		k := key(item)
		if _, twice := seen.get(k); !twice {
			seen.set(k, nil)
			kept = append(kept, item)
		}
	}
	return &list{items: kept}
}

func (in *interp) groupBy(v value, a args) value {
	a.only("attribute", "default", "case_sensitive")
	by := a.must(0, "attribute")
	get := in.getter(by, a.or(1, "default", nil))
	key := in.sortKey(nil, a.truth(2, "case_sensitive", false))
	all := in.sortBy(in.items(v), func(v value) value { return key(get(v)) }, false)
	out := &list{}
	var last value
	for i, item := range all.items {
		in.m.elements(2)
		name := get(item)
		if k := key(name); i == 0 || !in.equal(k, last) {
			last = k
			out.items = append(out.items, &list{items: []value{name, &list{}}, tuple: true})
		}
		group := out.items[len(out.items)-1].(*list).items[1].(*list)
		group.items = append(group.items, item)
	}
	return out
}

func (in *interp) batch(v value, a args) value {
	a.only("linecount", "fill_with")
	n := int(min(wantInt(a.must(0, "linecount")), math.MaxInt32))
	if n < 1 {
		fail("batches of %d", n)
	}
	out := &list{}
	items := in.items(v)
	for len(items) > 0 {
		row := items[:min(n, len(items))]
		items = items[len(row):]
		if fill, ok := a.get(1, "fill_with"); ok && fill != nil && len(row) < n {
			in.m.elements(n)
			row = append(slices.Clone(row), slices.Repeat([]value{fill}, n-len(row))...)
		}
		in.m.elements(1)
		out.items = append(out.items, in.newList(row))
	}
	return out
}

func (in *interp) slices(v value, a args) value {
	a.only("slices", "fill_with")
	n := wantInt(a.must(0, "slices"))
	if n < 1 {
		fail("%d slices", n)
	}
	count := in.times(n, 1)
	items := in.items(v)
	in.m.elements(len(items) + 2*count)
	out := &list{}
	for i, at := 0, 0; i < count; i++ {
		size := len(items) / count
		longer := i < len(items)%count
		if longer {
			size++
		}
		row := slices.Clone(items[at : at+size])
		at += size
		if fill, ok := a.get(1, "fill_with"); ok && fill != nil && !longer && len(items)%count != 0 {
			row = append(row, fill)
		}
		out.items = append(out.items, &list{items: row})
	}
	return out
}

// rounded is Jinja's round, whose result is a float.
func rounded(v value, a args) value {
	a.only("precision", "method")
	f, ok := number(v)
	if !ok {
		fail("round of %s", kind(v))
	}
	scale := math.Pow(10, float64(a.integer(0, "precision", 0)))
	switch method := a.text(1, "method", "common"); method.s {
	case "common":
		if precision := a.integer(0, "precision", 0); precision > 0 && precision <= 300 {
			// The nearest of the digits, as Python rounds, not of the scaled number.
			rounded, _ := strconv.ParseFloat(strconv.FormatFloat(f, 'f', int(precision), 64), 64)
			return rounded
		}
		if _, isFloat := v.(float64); !isFloat && scale >= 1 {
			return wantInt(v)
		}
		return math.RoundToEven(f*scale) / scale
	case "ceil":
		return math.Ceil(f*scale) / scale
	case "floor":
		return math.Floor(f*scale) / scale
	default:
		fail("round by the method %q", method.s)
	}
	return nil
}

// titled is Jinja's title: words begin after blanks, hyphens and opening brackets.
func titled(s string) string {
	inside := false
	return strings.Map(func(r rune) rune {
		was := inside
		inside = !isSpace(r) && !strings.ContainsRune("-({[<", r)
		if was {
			return unicode.ToLower(r)
		}
		return unicode.ToUpper(r)
	}, s)
}

func (in *interp) indent(t Text, a args) value {
	a.only("width", "first", "blank")
	by := Own("")
	if v := a.or(0, "width", int64(4)); truth(v) {
		if w, ok := v.(Text); ok {
			by = w
		} else {
			by = in.repeated(Own(" "), wantInt(v))
		}
	}
	blank := a.truth(2, "blank", false)
	b := builder{m: &in.m}
	if a.truth(1, "first", false) {
		b.write(by)
	}
	// A newline at the end begins a last line, which is empty.
	lines := in.lines(in.arithmetic("+", t, Own("\n")).(Text), false)
	for i, line := range lines {
		if i > 0 {
			b.writeOwn("\n")
			if blank || line.(Text).s != "" {
				b.write(by)
			}
		}
		b.write(line.(Text))
	}
	return b.text()
}

func (in *interp) truncate(t Text, a args) value {
	a.only("length", "killwords", "end", "leeway")
	length, end := a.integer(0, "length", 255), a.text(2, "end", "...")
	leeway := a.integer(3, "leeway", 5)
	if n := int64(end.chars()); length < n || leeway < 0 {
		fail("truncate to %d characters with an end of %d", length, n)
	}
	if int64(t.chars()) <= length+min(leeway, math.MaxInt32) {
		return t
	}
	kept := in.m.slice(t, 0, t.offset(int(length)-end.chars()))
	if !a.truth(1, "killwords", false) {
		if i := strings.LastIndexByte(kept.s, ' '); i >= 0 {
			kept = in.m.slice(kept, 0, i)
		}
	}
	return in.arithmetic("+", kept, end)
}

// tests are Jinja's.
var tests map[string]func(in *interp, v value, a args) bool

func init() {
	compares := func(op string) func(in *interp, v value, a args) bool {
		return func(in *interp, v value, a args) bool { return in.compares(op, v, a.must(0, "other")) }
	}
	is := func(f func(v value) bool) func(in *interp, v value, a args) bool {
		return func(in *interp, v value, a args) bool { return f(v) }
	}
	eq, ne, gt, ge, lt, le := compares("=="), compares("!="), compares(">"), compares(">="), compares("<"), compares("<=")
	parity := func(n int64) func(in *interp, v value, a args) bool {
		return func(in *interp, v value, a args) bool {
			return in.equal(in.arithmetic("%", v, int64(2)), n)
		}
	}
	tests = map[string]func(in *interp, v value, a args) bool{
		"boolean": is(func(v value) bool { _, ok := v.(bool); return ok }),
		"callable": is(func(v value) bool {
			switch v.(type) {
			case function, *closure:
				return true
			}
			return false
		}),
		"defined": is(func(v value) bool { _, missing := v.(undefined); return !missing }),
		"divisibleby": func(in *interp, v value, a args) bool {
			return in.equal(in.arithmetic("%", v, a.must(0, "num")), int64(0))
		},
		"eq": eq, "equalto": eq, "==": eq,
		"even":  parity(0),
		"false": is(func(v value) bool { return v == false }),
		"filter": func(in *interp, v value, a args) bool {
			t, ok := v.(Text)
			return ok && filters[t.s] != nil
		},
		"float": is(func(v value) bool { _, ok := v.(float64); return ok }),
		"ge":    ge, ">=": ge,
		"greaterthan": gt, "gt": gt, ">": gt,
		"in":      func(in *interp, v value, a args) bool { return in.contains(a.must(0, "seq"), v) },
		"integer": is(func(v value) bool { _, ok := v.(int64); return ok }),
		"iterable": is(func(v value) bool {
			switch v.(type) {
			case Text, *list, *dict, undefined:
				return true
			}
			return false
		}),
		"le": le, "<=": le,
		"lessthan": lt, "lt": lt, "<": lt,
		"lower": func(in *interp, v value, a args) bool {
			t := in.text(v)
			in.m.look(t)
			return isCase(t.s, unicode.IsLower, unicode.IsUpper)
		},
		"mapping": is(func(v value) bool { _, ok := v.(*dict); return ok }),
		"ne":      ne, "!=": ne,
		"none":   is(func(v value) bool { return v == nil }),
		"number": is(func(v value) bool { _, ok := number(v); return ok }),
		"odd":    parity(1),
		"sameas": func(in *interp, v value, a args) bool {
			other := a.must(0, "other")
			switch v.(type) {
			case nil, bool:
				switch other.(type) {
				case nil, bool:
					return v == other
				}
				return false
			case *list, *dict, *namespace:
				return v == other
			}
			return in.equal(v, other)
		},
		"sequence": is(func(v value) bool {
			switch v.(type) {
			case Text, *list, *dict, undefined:
				return true
			}
			return false
		}),
		"string": is(func(v value) bool { _, ok := v.(Text); return ok }),
		"test": func(in *interp, v value, a args) bool {
			t, ok := v.(Text)
			return ok && tests[t.s] != nil
		},
		"true":      is(func(v value) bool { return v == true }),
		"undefined": is(func(v value) bool { _, missing := v.(undefined); return missing }),
		"upper": func(in *interp, v value, a args) bool {
			t := in.text(v)
			in.m.look(t)
			return isCase(t.s, unicode.IsUpper, unicode.IsLower)
		},
	}
}
