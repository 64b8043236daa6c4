package gateway

import (
	"strconv"
	"unicode/utf8"

	"github.com/quire-serve/quire/model/tokenizer"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// appendChatLogprobs writes a chat choice's logprobs object for some tokens.
func appendChatLogprobs(b []byte, vocab *tokenizer.Tokenizer, list []*pb.Logprobs) []byte {
	b = append(b, `{"content":[`...)
	for i, lp := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendChatToken(b, vocab, lp.GetChosen())
		b = append(b, `,"top_logprobs":[`...)
		for k, top := range lp.Top {
			if k > 0 {
				b = append(b, ',')
			}
			b = append(appendChatToken(b, vocab, top), '}')
		}
		b = append(b, "]}"...)
	}
	return append(b, `],"refusal":null}`...)
}

// appendChatToken writes a token's text, log-probability and bytes, and leaves the object open.
func appendChatToken(b []byte, vocab *tokenizer.Tokenizer, t *pb.TokenLogprob) []byte {
	raw := vocab.Bytes(t.GetTokenId())
	b = append(b, `{"token":`...)
	b = appendString(b, string(raw))
	b = append(b, `,"logprob":`...)
	b = appendLogprob(b, t.GetLogprob())
	b = append(b, `,"bytes":[`...)
	for i, c := range raw {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendInt(b, int(c))
	}
	return append(b, ']')
}

// legacyLogprobs writes the completions API's logprobs: four parallel lists. Offsets count characters
// of the returned text and go on from chunk to chunk.
type legacyLogprobs struct {
	vocab  *tokenizer.Tokenizer
	offset int
}

// legacyToken names a token in the old format: its text, or its bytes spelled out where they are not
// whole characters, so that different tokens stay different keys.
func legacyToken(raw []byte) string {
	if utf8.Valid(raw) {
		return string(raw)
	}
	name := []byte("bytes:")
	for _, c := range raw {
		name = append(name, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
	}
	return string(name)
}

// characters counts the characters that begin in raw, so that a character cut into two tokens counts
// once.
func characters(raw []byte) int {
	n := 0
	for _, c := range raw {
		if c&0xc0 != 0x80 {
			n++
		}
	}
	return n
}

// legacyEntry is one token of the lists; a nil probs is a prompt's first token, which has none.
type legacyEntry struct {
	id     int32
	probs  *pb.Logprobs
	hidden bool // not part of the text: it takes no room
}

func (l *legacyLogprobs) append(b []byte, entries []legacyEntry) []byte {
	list := func(name string, item func(e legacyEntry)) {
		b = append(b, name...)
		for i, e := range entries {
			if i > 0 {
				b = append(b, ',')
			}
			item(e)
		}
		b = append(b, ']')
	}
	b = append(b, '{')
	list(`"text_offset":[`, func(e legacyEntry) {
		b = appendInt(b, l.offset)
		if !e.hidden {
			l.offset += characters(l.vocab.Bytes(e.id))
		}
	})
	list(`,"token_logprobs":[`, func(e legacyEntry) {
		if e.probs == nil {
			b = append(b, "null"...)
			return
		}
		b = appendLogprob(b, e.probs.GetChosen().GetLogprob())
	})
	list(`,"tokens":[`, func(e legacyEntry) { b = appendString(b, legacyToken(l.vocab.Bytes(e.id))) })
	list(`,"top_logprobs":[`, func(e legacyEntry) { b = l.appendTop(b, e) })
	return append(b, '}')
}

// appendTop writes the likeliest tokens and the chosen one as an object.
func (l *legacyLogprobs) appendTop(b []byte, e legacyEntry) []byte {
	if e.probs == nil {
		return append(b, "null"...)
	}
	b = append(b, '{')
	chosen := false
	for i, t := range e.probs.Top {
		if i > 0 {
			b = append(b, ',')
		}
		b = l.appendPair(b, t)
		chosen = chosen || t.TokenId == e.id
	}
	if !chosen {
		if len(e.probs.Top) > 0 {
			b = append(b, ',')
		}
		b = l.appendPair(b, e.probs.GetChosen())
	}
	return append(b, '}')
}

func (l *legacyLogprobs) appendPair(b []byte, t *pb.TokenLogprob) []byte {
	b = appendString(b, legacyToken(l.vocab.Bytes(t.GetTokenId())))
	b = append(b, ':')
	return appendLogprob(b, t.GetLogprob())
}

// promptEntries pairs a prompt's tokens with their log-probabilities; the first has none.
func promptEntries(prompt []int32, probs []*pb.Logprobs, hideFirst bool) []legacyEntry {
	entries := make([]legacyEntry, len(prompt))
	for i, id := range prompt {
		entries[i] = legacyEntry{id: id, hidden: i == 0 && hideFirst}
		if i > 0 && i-1 < len(probs) {
			entries[i].probs = probs[i-1]
		}
	}
	return entries
}

// fingerprintField writes the optional system_fingerprint member, with its comma.
func fingerprintField(b []byte, fingerprint string) []byte {
	if fingerprint == "" {
		return b
	}
	b = append(b, `,"system_fingerprint":`...)
	return strconv.AppendQuote(b, fingerprint)
}
