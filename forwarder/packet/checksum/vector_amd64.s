#include "textflag.h"

// 32 bytes of zeros, then 32 of ones: the 32 bytes at offset r keep the last r bytes of a vector.
DATA lastBytes<>+0(SB)/8, $0
DATA lastBytes<>+8(SB)/8, $0
DATA lastBytes<>+16(SB)/8, $0
DATA lastBytes<>+24(SB)/8, $0
DATA lastBytes<>+32(SB)/8, $-1
DATA lastBytes<>+40(SB)/8, $-1
DATA lastBytes<>+48(SB)/8, $-1
DATA lastBytes<>+56(SB)/8, $-1
GLOBL lastBytes<>(SB), RODATA|NOPTR, $64

// ADD32 adds the 16 words at off(SI) to the lanes of acc. VPMADDWD is the cheapest way from 16 to 32 bits, three
// instructions for 32 bytes where masking and shifting take four, but it takes words as signed: flipping the top bit
// makes x to x - 32768, which the end sets right for all words together.
#define ADD32(off, tmp, acc) \
	VPXOR    off(SI), Y14, tmp \
	VPMADDWD tmp, Y15, tmp     \
	VPADDD   tmp, acc, acc

// func sumAVX2(p *byte, n int) uint64
TEXT ·sumAVX2(SB), NOSPLIT, $0-24
	MOVQ p+0(FP), SI
	MOVQ n+8(FP), CX
	MOVQ CX, AX            // the result begins as the correction: n/2 words of 32768 each
	SHLQ $14, AX

	VPCMPEQW Y15, Y15, Y15
	VPSLLW   $15, Y15, Y14 // words of 0x8000
	VPSRLW   $15, Y15, Y15 // words of 1
	VPXOR    Y0, Y0, Y0
	VPXOR    Y1, Y1, Y1
	VPXOR    Y2, Y2, Y2
	VPXOR    Y3, Y3, Y3

	SUBQ $128, CX
	JLT  blocks

loop:
	ADD32(0, Y4, Y0)
	ADD32(32, Y5, Y1)
	ADD32(64, Y6, Y2)
	ADD32(96, Y7, Y3)
	ADDQ $128, SI
	SUBQ $128, CX
	JGE  loop

blocks:
	ADDQ $96, CX           // what is left, less 32
	JLT  tail

block:
	ADD32(0, Y4, Y0)
	ADDQ $32, SI
	SUBQ $32, CX
	JGE  block

tail:
	ADDQ $32, CX           // 0 to 30 bytes are left
	JZ   reduce

	// The last 32 bytes of the input, without those that are counted. A masked word is 0, as if it had been 32768.
	LEAQ     lastBytes<>(SB), DX
	VPXOR    -32(SI)(CX*1), Y14, Y4
	VPAND    (DX)(CX*1), Y4, Y4
	VPMADDWD Y4, Y15, Y4
	VPADDD   Y4, Y1, Y1

reduce:
	VPADDD       Y1, Y0, Y0
	VPADDD       Y3, Y2, Y2
	VPADDD       Y2, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDD       X1, X0, X0
	VPSHUFD      $0x4e, X0, X1
	VPADDD       X1, X0, X0
	VPSHUFD      $0xb1, X0, X1
	VPADDD       X1, X0, X0
	VMOVD        X0, CX
	VZEROUPPER
	MOVLQSX      CX, CX
	ADDQ         CX, AX
	MOVQ         AX, ret+16(FP)
	RET
