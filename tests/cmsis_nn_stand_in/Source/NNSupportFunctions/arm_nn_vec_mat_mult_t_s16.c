/* SPDX-License-Identifier: Apache-2.0 */
/* The real library computes here; a project compiles the file, so the stand-in has it. */
typedef int arm_nn_vec_mat_mult_t_s16_is_not_used;
