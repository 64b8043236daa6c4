package grammar

import (
	"encoding/json"
	"math/big"
	"strconv"
	"strings"
)

// integer adds the integers between the schema's bounds, and in any case those of maxDigits
// digits.
func (s *schemas) integer(from, to int32, o *object, place string) {
	lo, hi := int64(-largestDigits), int64(largestDigits)
	for _, name := range []string{"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"} {
		v, ok := o.values[name]
		if !ok {
			continue
		}
		bound, ok := number(v)
		if !ok {
			s.refuse(join(place, name), "not a number of usual size")
			return
		}
		// The floor; of a bound that is no integer itself, the ceiling is one more.
		floor := new(big.Int).Div(bound.Num(), bound.Denom())
		switch {
		case name == "minimum" && !bound.IsInt(), name == "exclusiveMinimum":
			floor.Add(floor, big.NewInt(1))
		case name == "exclusiveMaximum" && bound.IsInt():
			floor.Sub(floor, big.NewInt(1))
		}
		n := clamp(floor)
		if strings.HasSuffix(strings.ToLower(name), "minimum") {
			lo = max(lo, n)
		} else {
			hi = min(hi, n)
		}
	}
	if lo > hi {
		s.refuse(place, "no integer of at most %d digits is within the bounds", maxDigits)
		return
	}
	if hi >= 0 {
		s.b.natural(from, to, max(lo, 0), hi)
	}
	if lo < 0 {
		negative := s.b.node()
		s.b.bytes(from, negative, '-', '-')
		s.b.natural(negative, to, max(-hi, 1), -lo)
	}
}

// clamp returns n, or the nearest that is one more than maxDigits digits have.
func clamp(n *big.Int) int64 {
	most := big.NewInt(largestDigits + 1)
	if n.CmpAbs(most) > 0 {
		return int64(n.Sign()) * most.Int64()
	}
	return n.Int64()
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
	first, last := strconv.FormatInt(lo, 10), strconv.FormatInt(hi, 10)
	for n := len(first); n <= len(last); n++ {
		l, h := first, last
		if n > len(first) {
			l = "1" + strings.Repeat("0", n-1)
		}
		if n < len(last) {
			h = strings.Repeat("9", n)
		}
		b.between(from, to, l, h)
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

// number adds a number. Of bounds only minimum 0 is supported: it forbids the sign.
func (s *schemas) number(from, to int32, o *object, place string) {
	negative := true
	for _, name := range []string{"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"} {
		v, ok := o.values[name]
		if !ok {
			continue
		}
		bound, ok := number(v)
		if name != "minimum" || !ok || bound.Sign() != 0 {
			s.refuse(join(place, name), "of the bounds of a number only a minimum of 0 is supported; those of an integer all are")
			return
		}
		negative = false
	}
	s.b.number(from, to, negative)
}
