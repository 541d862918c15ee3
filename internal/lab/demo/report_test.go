package main

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	var out strings.Builder
	r := &report{out: &out}
	ctx, cancel := context.WithCancel(context.Background())
	good := func() (string, error) { return "0.21 ms", nil }
	if !r.check(ctx, "works", good) {
		t.Error("a passed check counts as failed")
	}
	if r.check(ctx, "breaks", func() (string, error) { return "", errors.New("first\nsecond") }) {
		t.Error("a failed check counts as passed")
	}
	if r.check(ctx, "cut off", func() (string, error) { cancel(); return "", ctx.Err() }) || r.check(ctx, "late", good) {
		t.Error("an interrupted check counts as passed")
	}
	want := "ok   works" + strings.Repeat(" ", nameWidth-len("works")+1) + "0.21 ms\n" +
		"FAIL breaks\n       first\n       second\n"
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
	if r.passed != 1 || r.failed != 1 {
		t.Errorf("%d passed, %d failed, want 1 and 1", r.passed, r.failed)
	}
}
