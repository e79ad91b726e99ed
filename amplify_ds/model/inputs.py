"""Check the inputs of `AMPLIFY.forward` and convert them to one form: positions, segments of a packed batch, a mask.

Callers can specify in many ways which tokens attend to each other: with a mask (boolean, 0/1 or additive), the official
`pad_mask`, our `cu_seqlens`, Hugging Face's `cu_seq_lens_q` and its companions, or position ids that restart with each
protein. No argument is ignored, which could let proteins attend to each other: contradictions raise ValueError.

Depends on torch only: this file is part of every exported model folder.
Shapes: B batch, L padded length, T packed tokens, S segments; `…` stands for [B, L], [T] or [1, T].
"""

import torch
import torch.nn.functional as F

from .attention import Segments


def arrange(
    shape,
    device,
    attention_mask=None,
    pad_mask=None,
    position_ids=None,
    cu_seqlens=None,
    max_seqlen=None,
    cu_seq_lens_q=None,
    cu_seq_lens_k=None,
    max_length_q=None,
    max_length_k=None,
):
    """Return (position_ids, segments, mask) of a batch of `shape` …; the arguments are those of `AMPLIFY.forward`.

    segments: of a packed batch, else None. mask: boolean, broadcasts to [B, N, L, L], True where a key is visible; or
    None. Raises ValueError for arguments that contradict each other or the shape.
    """
    if len(shape) not in (1, 2):
        raise ValueError(f"input_ids must be [B, L], [T] or [1, T], found {list(shape)}")
    if position_ids is not None:
        _check_shape("position_ids", position_ids, shape, axes=(1, 2))
    cu_seqlens, max_seqlen = _merge_names(
        cu_seqlens, max_seqlen, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k
    )
    if cu_seqlens is not None:
        if shape.numel() != shape[-1]:
            raise ValueError(f"a packed batch (with cu_seqlens) must be [T] or [1, T], found {list(shape)}")
        if attention_mask is not None or pad_mask is not None:
            raise ValueError("a packed batch (with cu_seqlens) takes no attention_mask; remove the mask")
        segments = Segments(cu_seqlens, max_seqlen).check(shape[-1])
        positions = segments.positions(device) if position_ids is None else position_ids
        return positions.expand(shape), segments, None
    mask = attention_bias(attention_mask, shape, pad_mask)
    if position_ids is None:
        return torch.arange(shape[-1], device=device), None, mask
    return position_ids, *_separate_proteins(position_ids, mask, shape)


def attention_bias(mask, shape, pad_mask=None):
    """Convert an attention mask, or the official additive `pad_mask`, to boolean [B, 1 or N, 1 or L, L], True where a
    key is visible; None -> None.

    Accepts boolean, 0/1 (integer or float) and additive (0 for visible, negative or -inf for hidden) masks of shape
    [B, L], [B, L, L] or [B, 1 or N, L, L]. A float mask without a positive entry is taken as additive.
    """
    if pad_mask is not None:
        if mask is not None:
            raise ValueError("attention_mask and pad_mask were both given; pass one of them")
        if not pad_mask.is_floating_point() or (pad_mask > 0).any():
            raise ValueError(
                "pad_mask must be additive: floating point, 0 at tokens and -inf at padding; pass any other mask as "
                "attention_mask"
            )
        mask = pad_mask
    if mask is None:
        return None
    _check_shape("attention_mask", mask, shape, axes=(2, 3, 4))
    while mask.dim() < 4:
        mask = mask.unsqueeze(1)
    if mask.dtype == torch.bool:
        return mask
    if mask.is_floating_point():
        return torch.where(mask.amax(-1, keepdim=True) > 0, mask > 0, mask == 0)
    return mask != 0


def _check_shape(name, x, shape, axes):
    """Raise ValueError unless x has a number of axes in `axes`, the last of length L, the first of several B or 1."""
    batches = (shape[0], 1) if len(shape) == 2 else ()
    if x.dim() not in axes or x.shape[-1] != shape[-1] or (x.dim() > 1 and x.shape[0] not in batches):
        raise ValueError(f"{name} {list(x.shape)} does not fit input_ids {list(shape)}")


def _merge_names(cu_seqlens, max_seqlen, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k):
    """Return (cu_seqlens, max_seqlen), given under these names or under Hugging Face's for queries and keys."""
    if any(x is not None for x in (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)):
        if cu_seqlens is not None or max_seqlen is not None:
            raise ValueError("cu_seqlens and cu_seq_lens_q were both given; pass one of them")
        if cu_seq_lens_q is None or cu_seq_lens_k is None:
            raise ValueError("cu_seq_lens_q and cu_seq_lens_k must be given together")
        same = cu_seq_lens_q is cu_seq_lens_k or cu_seq_lens_q.tolist() == cu_seq_lens_k.tolist()
        longest = {int(x) for x in (max_length_q, max_length_k) if x is not None}
        if not same or len(longest) > 1:
            raise ValueError(
                "queries and keys of an encoder are the same tokens: cu_seq_lens_q must equal cu_seq_lens_k, and "
                "max_length_q max_length_k"
            )
        cu_seqlens, max_seqlen = cu_seq_lens_q, longest.pop() if longest else None
    if cu_seqlens is None and max_seqlen is not None:
        raise ValueError("max_seqlen was given without cu_seqlens")
    return cu_seqlens, max_seqlen


def _separate_proteins(position_ids, mask, shape):
    """Return (segments, mask) that separate the proteins whose position ids restart.

    A position id that is not greater than the one before it starts a new protein; a jump ahead, as over a gap, does
    not. A single row becomes segments. Several rows, and all inputs while tracing, get a mask [B or 1, 1, L, L].
    """
    first = F.pad(position_ids[..., 1:] <= position_ids[..., :-1], (1, 0))
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):  # tracing cannot depend on values
        if not first.any():
            return None, mask
        if mask is None and shape.numel() == shape[-1]:
            starts = first.flatten().nonzero().flatten().tolist()
            return Segments(torch.tensor([0, *starts, shape[-1]], dtype=torch.int32)).check(shape[-1]), None
    protein = first.cumsum(-1)
    same = protein.unsqueeze(-1) == protein.unsqueeze(-2)
    if same.dim() == 3:
        same = same.unsqueeze(1)
    if mask is not None:  # padding before the first token would see nothing, so it sees itself
        same = (same & mask) | torch.eye(shape[-1], dtype=torch.bool, device=same.device)
    return None, same
