package grammar

import (
	"encoding/json"
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// integer adds the integers between the schema's bounds, and in any case those of maxDigits
// digits.
func (s *schemas) integer(from, to int32, o *object, place string) {
	lo, hi, ok := s.bounds(o, 0, place)
	if !ok {
		return
	}
	step := int64(1)
	if v, said := o.values["multipleOf"]; said {
		of, ok := number(v)
		switch {
		case !ok || of.Sign() <= 0:
			s.refuse(join(place, "multipleOf"), "not a number above 0 of usual size")
			return
		case !of.Num().IsInt64() || of.Num().Int64() > maxMultiple:
			s.refuse(join(place, "multipleOf"), "more than %d", maxMultiple)
			return
		}
		step = of.Num().Int64() // the integers among the multiples of a fraction are those of its numerator
	}
	s.signed(from, to, lo, hi, func(from, to int32, lo, hi *big.Int) {
		if step == 1 {
			s.b.natural(from, to, lo.Int64(), hi.Int64())
		} else {
			s.b.multiples(from, to, lo.Int64(), hi.Int64(), int(step))
		}
	})
}

// number adds the numbers between the schema's bounds. Without any, or with a minimum of 0 alone,
// they may have an exponent; else they are written without.
func (s *schemas) number(from, to int32, o *object, place string) {
	places, bounded := maxFraction, false
	if v, said := o.values["multipleOf"]; said {
		of, ok := number(v)
		if ok && of.IsInt() {
			s.integer(from, to, o, place)
			return
		}
		places, bounded = 0, true
		for ten := big.NewRat(10, 1); ok && !of.IsInt() && places < maxFraction; places++ {
			of.Mul(of, ten)
		}
		if !ok || of.Cmp(big.NewRat(1, 1)) != 0 {
			s.refuse(join(place, "multipleOf"), "of a number only whole ones to %d and 0.1, 0.01 and so on are supported", maxMultiple)
			return
		}
	}
	negative := true
	for _, name := range boundNames {
		v, said := o.values[name]
		if x, ok := number(v); said && name == "minimum" && ok && x.Sign() == 0 {
			negative = false
		} else {
			bounded = bounded || said
		}
	}
	if !bounded {
		s.b.number(from, to, negative)
		return
	}
	lo, hi, ok := s.bounds(o, places, place)
	if ok {
		s.signed(from, to, lo, hi, func(from, to int32, lo, hi *big.Int) { s.b.decimals(from, to, lo, hi, places) })
	}
}

var boundNames = []string{"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"}

// maxMultiple bounds multipleOf: it takes 18 nodes for each remainder.
const maxMultiple = 1000

// bounds reads the least and the largest number with places digits after the point that a schema
// allows, in units of the last of them.
func (s *schemas) bounds(o *object, places int, place string) (lo, hi *big.Int, ok bool) {
	unit := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(places)), nil)
	most := new(big.Int).Mul(big.NewInt(largestDigits+1), unit)
	hi = most.Sub(most, big.NewInt(1))
	lo = new(big.Int).Neg(hi)
	for _, name := range boundNames {
		v, said := o.values[name]
		if !said {
			continue
		}
		bound, ok := number(v)
		if !ok {
			s.refuse(join(place, name), "not a number of usual size")
			return nil, nil, false
		}
		bound = new(big.Rat).Mul(bound, new(big.Rat).SetInt(unit))
		// The floor; of a bound that is no whole number itself, the ceiling is one more.
		n := new(big.Int).Div(bound.Num(), bound.Denom())
		switch {
		case name == "minimum" && !bound.IsInt(), name == "exclusiveMinimum":
			n.Add(n, big.NewInt(1))
		case name == "exclusiveMaximum" && bound.IsInt():
			n.Sub(n, big.NewInt(1))
		}
		if strings.HasSuffix(strings.ToLower(name), "minimum") {
			if n.Cmp(lo) > 0 {
				lo = n
			}
		} else if n.Cmp(hi) < 0 {
			hi = n
		}
	}
	if lo.Cmp(hi) > 0 {
		what := "number"
		if places == 0 {
			what = "integer"
		}
		s.refuse(place, "no %s of at most %d digits is within the bounds", what, maxDigits)
		return nil, nil, false
	}
	return lo, hi, true
}

// signed adds the numbers from lo to hi, given how those from 0 on are added.
func (s *schemas) signed(from, to int32, lo, hi *big.Int, add func(from, to int32, lo, hi *big.Int)) {
	zero, one := new(big.Int), big.NewInt(1)
	if hi.Sign() >= 0 {
		least := lo
		if lo.Sign() < 0 {
			least = zero
		}
		add(from, to, least, hi)
	}
	if lo.Sign() < 0 {
		least := one
		if hi.Sign() < 0 {
			least = new(big.Int).Neg(hi)
		}
		negative := s.b.node()
		s.b.bytes(from, negative, '-', '-')
		add(negative, to, least, new(big.Int).Neg(lo))
	}
}

// number reads a bound. Exponents of more than two digits would make big numbers of few bytes.
func number(v any) (*big.Rat, bool) {
	n, ok := v.(json.Number)
	if !ok || len(n) > 64 {
		return nil, false
	}
	if i := strings.IndexAny(string(n), "eE"); i >= 0 && len(strings.TrimLeft(string(n[i+1:]), "+-0")) > 2 {
		return nil, false
	}
	return new(big.Rat).SetString(string(n))
}

// natural adds the decimal numbers from lo to hi, 0 ≤ lo ≤ hi, without leading zeros.
func (b *builder) natural(from, to int32, lo, hi int64) {
	b.byLength(lo, hi, func(first, last string) { b.between(from, to, first, last) })
}

// byLength cuts the numbers from lo to hi into those of equal length.
func (b *builder) byLength(lo, hi int64, add func(first, last string)) {
	first, last := strconv.FormatInt(lo, 10), strconv.FormatInt(hi, 10)
	for n := len(first); n <= len(last); n++ {
		l, h := first, last
		if n > len(first) {
			l = "1" + strings.Repeat("0", n-1)
		}
		if n < len(last) {
			h = strings.Repeat("9", n)
		}
		add(l, h)
	}
}

// between adds the digit strings from lo to hi, which are of one length.
func (b *builder) between(from, to int32, lo, hi string) {
	if strings.Trim(lo, "0") == "" && strings.Trim(hi, "9") == "" {
		b.digits(from, to, len(lo), len(lo))
		return
	}
	if len(lo) == 1 {
		b.bytes(from, to, lo[0], hi[0])
		return
	}
	step := func(c, d byte) int32 {
		next := b.node()
		b.bytes(from, next, c, d)
		return next
	}
	if lo[0] == hi[0] {
		b.between(step(lo[0], lo[0]), to, lo[1:], hi[1:])
		return
	}
	rest := len(lo) - 1
	b.between(step(lo[0], lo[0]), to, lo[1:], strings.Repeat("9", rest))
	if lo[0]+1 < hi[0] {
		b.digits(step(lo[0]+1, hi[0]-1), to, rest, rest)
	}
	b.between(step(hi[0], hi[0]), to, strings.Repeat("0", rest), hi[1:])
}

// multiples adds the multiples of step from lo to hi, 0 ≤ lo ≤ hi, by the remainder of what was read.
func (b *builder) multiples(from, to int32, lo, hi int64, step int) {
	type key struct{ left, rest int }
	free := map[key]int32{}
	var any func(left, rest int) int32 // left digits to come, all of them free
	any = func(left, rest int) int32 {
		k := key{left, rest}
		if n, ok := free[k]; ok {
			return n
		}
		n := b.node()
		free[k] = n
		if left == 0 && rest == 0 {
			b.empty(n, to)
		}
		for d := 0; d < 10 && left > 0 && b.err == nil; d++ {
			b.bytes(n, any(left-1, (rest*10+d)%step), byte('0'+d), byte('0'+d))
		}
		return n
	}
	var add func(n int32, first, last string, lower, upper bool, rest int)
	add = func(n int32, first, last string, lower, upper bool, rest int) {
		if first == "" || !lower && !upper {
			b.empty(n, any(len(first), rest))
			return
		}
		c, d := byte('0'), byte('9')
		if lower {
			c = first[0]
		}
		if upper {
			d = last[0]
		}
		for ; c <= d && b.err == nil; c++ {
			next := b.node()
			b.bytes(n, next, c, c)
			add(next, first[1:], last[1:], lower && c == first[0], upper && c == last[0], (rest*10+int(c-'0'))%step)
		}
	}
	b.byLength(lo, hi, func(first, last string) { add(from, first, last, true, true, 0) })
}

// decimals adds the decimal numbers from lo to hi, 0 ≤ lo ≤ hi, which are in units of the last of
// places digits after the point.
func (b *builder) decimals(from, to int32, lo, hi *big.Int, places int) {
	unit := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(places)), nil)
	split := func(x *big.Int) (whole int64, fraction string) {
		w, f := new(big.Int).DivMod(x, unit, new(big.Int))
		return w.Int64(), fmt.Sprintf("%0*d", places, f)[:places]
	}
	first, least := split(lo)
	last, most := split(hi)
	whole := func(lo, hi int64, least, most string) {
		point := b.node()
		b.natural(from, point, lo, hi)
		b.fraction(point, to, places, least, most)
	}
	if first == last {
		whole(first, first, least, most)
		return
	}
	whole(first, first, least, "")
	if first+1 < last {
		whole(first+1, last-1, "", "")
	}
	whole(last, last, "", most)
}

// fraction adds what may stand behind a whole number: nothing, or a point and 1 to places digits. As
// many digits of lo and hi bound it, "" for no bound.
func (b *builder) fraction(from, to int32, places int, lo, hi string) {
	if strings.Trim(lo, "0") == "" {
		b.empty(from, to)
	}
	if places > 0 {
		point := b.node()
		b.bytes(from, point, '.', '.')
		b.digitsBetween(point, to, places, lo, hi)
	}
}

// digitsBetween adds 1 to places digits that, zeros behind them, are between lo and hi.
func (b *builder) digitsBetween(from, to int32, places int, lo, hi string) {
	if strings.Trim(lo, "0") == "" {
		lo = ""
	}
	if strings.Trim(hi, "9") == "" {
		hi = ""
	}
	if lo == "" && hi == "" {
		b.digits(from, to, 1, places)
		return
	}
	step := func(c, d byte, lo, hi string) {
		next := b.node()
		b.bytes(from, next, c, d)
		if strings.Trim(lo, "0") == "" {
			b.empty(next, to)
		}
		if places > 1 {
			b.digitsBetween(next, to, places-1, lo, hi)
		}
	}
	c, d := byte('0'), byte('9')
	if lo != "" && hi != "" && lo[0] == hi[0] {
		step(lo[0], lo[0], lo[1:], hi[1:])
		return
	}
	if lo != "" {
		step(lo[0], lo[0], lo[1:], "")
		c = lo[0] + 1
	}
	if hi != "" {
		step(hi[0], hi[0], "", hi[1:])
		d = hi[0] - 1
	}
	if c <= d {
		step(c, d, "", "")
	}
}
