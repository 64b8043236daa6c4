package main

import (
	"fmt"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// TestOneBodyWinsAKeyAnywhere sends bodies of one and of several prompts, some of which begin alike, at once
// under one key to two gateways, some twice, beside others whose keys read as parts of it might: exactly one
// body has the key, whoever sends it gets its answer, and all others are refused as another's.
func TestOneBodyWinsAKeyAnywhere(t *testing.T) {
	c := newNodes(t, 2, func(int) []string { return nil })
	c.startWorker("w")
	c.leader(0, 1)
	for _, p := range c.run {
		p.waitReady()
	}
	round := 0
	rapid.Check(t, func(r *rapid.T) {
		round++
		key := fmt.Sprint("k", round)
		prompts := rapid.SliceOfN(rapid.SampledFrom([]string{`"A"`, `["A","B"]`, `["A","C"]`, `["D","B"]`, `["A","B","C"]`}), 2, 3).Draw(r, "bodies")
		type post struct {
			node         int
			key, body    string
			status       int
			answer       string
			ofItsOwnBody bool
		}
		var posts []*post
		for i, prompt := range prompts {
			body := fmt.Sprintf(`{"model":"tiny","max_tokens":3,"temperature":0,"prompt":%s}`, prompt)
			for range rapid.IntRange(1, 2).Draw(r, "times") {
				posts = append(posts, &post{node: rapid.IntRange(0, 1).Draw(r, "node"), key: key, body: body})
			}
			posts = append(posts, &post{node: i % 2, key: fmt.Sprint(key, ".", i), body: body, ofItsOwnBody: true})
		}
		var all sync.WaitGroup
		for _, p := range posts {
			all.Go(func() { p.status, p.answer = c.run[p.node].ask(p.key, "", p.body) })
		}
		all.Wait()
		winner := ""
		for _, p := range posts {
			if p.key == key && p.status == 200 {
				winner = p.body
			}
		}
		answer := ""
		for _, p := range posts {
			switch {
			case p.ofItsOwnBody && p.status == 200, !p.ofItsOwnBody && p.body != winner && p.status == 409:
			case !p.ofItsOwnBody && p.body == winner && p.status == 200 && (answer == "" || answer == p.answer):
				answer = p.answer
			default:
				r.Errorf("at node %d, key %s, body %s: %d %s; the winner is %q with %s", p.node, p.key, p.body, p.status, p.answer, winner, answer)
			}
		}
		if winner == "" {
			r.Errorf("no body has the key")
		}
	})
}
