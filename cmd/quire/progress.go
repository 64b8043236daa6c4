package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// progress shows how far long work is: a bar on a terminal, else a line at the start and at the end.
type progress struct {
	out   io.Writer
	what  string
	start time.Time
	bars  *mpb.Progress
	bar   *mpb.Bar
}

func newProgress(out io.Writer, what string) *progress {
	p := &progress{out: out, what: what, start: time.Now()}
	if f, ok := out.(*os.File); ok && isatty.IsTerminal(f.Fd()) {
		p.bars = mpb.New(mpb.WithOutput(out), mpb.WithWidth(40))
		p.bar = p.bars.AddBar(0, mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name(what+" ")),
			mpb.AppendDecorators(decor.CountersKibiByte("% .0f of % .0f")))
		return p
	}
	fmt.Fprintf(out, "%s …\n", what)
	return p
}

// bytes reports progress; a total of 0 is not known yet.
func (p *progress) bytes(done, total int64) {
	if p.bar != nil && total > 0 {
		p.bar.SetTotal(total, false)
		p.bar.SetCurrent(done)
	}
}

// end takes the bar away and says how it went.
func (p *progress) end(ok bool) {
	if p.bar != nil {
		p.bar.Abort(true)
		p.bars.Wait()
	}
	if ok {
		fmt.Fprintf(p.out, "%s: done in %s\n", strings.TrimSpace(p.what), time.Since(p.start).Round(10*time.Millisecond))
	}
}
