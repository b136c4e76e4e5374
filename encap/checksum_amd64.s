#include "textflag.h"

// func sumWide(b []byte) uint64
//
// Of each 64-bit lane that is loaded the lower and the upper half are added to a lane of 64 bits, which has
// room for 2^32 of them: there are no carries to look after. Y0 to Y3 are the sums, so that no addition waits
// for the one before.
TEXT ·sumWide(SB), NOSPLIT, $0-32
	MOVQ     b_base+0(FP), SI
	MOVQ     b_len+8(FP), CX
	VPXOR    Y0, Y0, Y0
	VPXOR    Y1, Y1, Y1
	VPXOR    Y2, Y2, Y2
	VPXOR    Y3, Y3, Y3
	VPCMPEQD Y12, Y12, Y12
	VPSRLQ   $32, Y12, Y12    // the lower half of each lane
	SUBQ     $128, CX
	JL       rest

four:
	VMOVDQU (SI), Y4
	VMOVDQU 32(SI), Y5
	VMOVDQU 64(SI), Y6
	VMOVDQU 96(SI), Y7
	VPAND   Y12, Y4, Y8
	VPAND   Y12, Y5, Y9
	VPAND   Y12, Y6, Y10
	VPAND   Y12, Y7, Y11
	VPSRLQ  $32, Y4, Y4
	VPSRLQ  $32, Y5, Y5
	VPSRLQ  $32, Y6, Y6
	VPSRLQ  $32, Y7, Y7
	VPADDQ  Y8, Y0, Y0
	VPADDQ  Y9, Y1, Y1
	VPADDQ  Y10, Y2, Y2
	VPADDQ  Y11, Y3, Y3
	VPADDQ  Y4, Y0, Y0
	VPADDQ  Y5, Y1, Y1
	VPADDQ  Y6, Y2, Y2
	VPADDQ  Y7, Y3, Y3
	ADDQ    $128, SI
	SUBQ    $128, CX
	JGE     four

	// What is left: 0 to 3 blocks of 32 bytes.
rest:
	ADDQ $128, CX
	JZ   fold

one:
	VMOVDQU (SI), Y4
	VPAND   Y12, Y4, Y8
	VPSRLQ  $32, Y4, Y4
	VPADDQ  Y8, Y0, Y0
	VPADDQ  Y4, Y1, Y1
	ADDQ    $32, SI
	SUBQ    $32, CX
	JNZ     one

	// Sixteen lanes down to one.
fold:
	VPADDQ       Y1, Y0, Y0
	VPADDQ       Y3, Y2, Y2
	VPADDQ       Y2, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDQ       X1, X0, X0
	VPSRLDQ      $8, X0, X1
	VPADDQ       X1, X0, X0
	VMOVQ        X0, AX
	VZEROUPPER
	MOVQ         AX, ret+24(FP)
	RET
