package lab

import "testing"

func TestNeedRoot(t *testing.T) {
	NeedRoot(t)
	if err := CheckPrivileges(); err != nil {
		t.Fatalf("NeedRoot returned, yet %v", err)
	}
}
