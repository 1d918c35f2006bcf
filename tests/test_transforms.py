"""torch.func, dual numbers and make_fx: as of PyTorch's convolution, so of depthwise_conv2d."""

import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from derivatives import Calls, conv2d, depthwise_conv2d, every_layout, make
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import dwconv

# So torch warns where it calls an operator for one example after the other.
pytestmark = pytest.mark.filterwarnings("error:There is a performance drop")

Function = Callable[..., Any]
# Loosely typed: these carry no annotations, or tighter ones than they mean.
jvp: Function = torch.func.jvp
make_dual: Function = forward_ad.make_dual
unpack_dual: Function = forward_ad.unpack_dual
autograd_functional: Any = torch.autograd.functional
EXAMPLES = 3


def agree(of: Callable[[Function], Any]) -> None:
    """Whatever is computed of one convolution and of the other."""
    ours, theirs = of(depthwise_conv2d), of(conv2d)
    torch.testing.assert_close(ours, theirs)


@pytest.fixture
def tensors(device: torch.device) -> list[Tensor]:
    """input, weight, bias: two filters for each of two channels, in float64."""
    return [tensor.detach() for tensor in make(device)]


def examples(tensor: Tensor, dim: int | None) -> Tensor:
    """One such tensor for each example; or the same for all, where they lie in no dimension."""
    if dim is None:
        return tensor
    size = [EXAMPLES, *tensor.shape]
    return torch.randn(size, dtype=tensor.dtype, device=tensor.device).movedim(0, dim)


DIMS = [*product((None, 0, 1, 3, -1), (None, 0, -1), (None, 0, 1))]
DIMS.remove((None, None, None))


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_vmap(dims: tuple[int | None, ...], tensors: list[Tensor]) -> None:
    """Every tensor may be one for each example, in any dimension; with gradients and without."""
    given = [examples(t, dim).requires_grad_() for t, dim in zip(tensors, dims, strict=True)]

    def outputs(function: Function) -> Tensor:
        result: Tensor = vmap(partial(function, stride=(2, 1), padding=(1, 2)), dims)(*given)
        return result

    agree(lambda function: torch.autograd.grad(outputs(function).pow(2).sum(), given))
    with torch.no_grad():
        agree(outputs)


# Of the operators that are differentiable, what they take.
OPERATORS = {
    "depthwise_conv2d": ("input", "weight", "bias"),
    "depthwise_conv2d_input": ("output", "weight"),
    "depthwise_conv2d_weight": ("output", "input"),
}
SIZES = {"input": (2, 3, 5, 6), "weight": (6, 1, 2, 3), "output": (2, 6, 5, 4), "bias": (6,)}
LISTS = [1, 1], [1, 0, 0, 0], [1, 1]
every_operator = pytest.mark.parametrize("name", OPERATORS)


def operator_call(name: str, device: torch.device) -> tuple[Any, list[Tensor], list[Any]]:
    """The operator, its tensors, and the rest of its arguments."""
    size = {"depthwise_conv2d_input": SIZES["input"], "depthwise_conv2d_weight": SIZES["weight"]}
    rest: list[Any] = [list(size[name])] if name in size else []
    given = [
        torch.randn(SIZES[which], dtype=torch.float64, device=device) for which in OPERATORS[name]
    ]
    return getattr(torch.ops.dwconv, name).default, given, [*rest, *LISTS]


@every_operator
def test_vmap_of_operators(name: str, device: torch.device) -> None:
    """The result of each example, in each of the three."""
    operator, given, rest = operator_call(name, device)
    for dims in product((None, 0, 1), repeat=len(given)):
        if not any(dim is not None for dim in dims):
            continue
        all_ = [examples(tensor, dim) for tensor, dim in zip(given, dims, strict=True)]
        results = vmap(lambda *these: operator(*these, *rest), dims)(*all_)
        for i, result in enumerate(results):
            one = [t if d is None else t.select(d, i) for t, d in zip(all_, dims, strict=True)]
            torch.testing.assert_close(result, operator(*one, *rest))


@every_operator
@every_layout
def test_opcheck(name: str, memory_format: torch.memory_format, device: torch.device) -> None:
    """PyTorch's own test, of derivatives under AOT autograd as well."""
    operator, given, rest = operator_call(name, device)
    given[0] = given[0].contiguous(memory_format=memory_format)
    torch.library.opcheck(operator, (*(tensor.requires_grad_() for tensor in given), *rest))


@every_layout
@pytest.mark.parametrize("dim", [0, 1])
def test_vmap_of_images_copies_none(
    dim: int, memory_format: torch.memory_format, device: torch.device
) -> None:
    """With filters in common, examples are more images: in either order, and in their format."""
    sizes = (EXAMPLES, 2) if dim == 0 else (2, EXAMPLES)
    x = torch.randn(2 * EXAMPLES, 4, 5, 6, device=device).contiguous(memory_format=memory_format)
    w = torch.randn(4, 1, 3, 3, device=device)
    with Calls() as calls:
        results = vmap(lambda x: depthwise_conv2d(x, w), dim)(torch.unflatten(x, 0, sizes))
    assert calls.names == ["forward"]
    assert not {name for name in calls.others if "clone" in name or "copy" in name}
    assert results.movedim(0, dim).flatten(0, 1).is_contiguous(memory_format=memory_format)


def test_nested_vmap(tensors: list[Tensor]) -> None:
    x, w, b = (examples(tensor, 0) for tensor in tensors)
    for outer, inner in (
        ((0, None, None), (None, 0, 0)),
        ((None, 0, 0), (0, None, None)),
        ((None, None, 0), (0, 0, None)),
    ):
        agree(lambda f, o=outer, i=inner: vmap(vmap(f, i), o)(x, w, b))  # type: ignore[misc]
    twice = examples(x, 0)
    agree(lambda f: vmap(vmap(f, (0, None, 0)), (0, 0, None))(twice, w, b))


@every_layout
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
def test_gradients_of_each_sample(
    batched: bool, memory_format: torch.memory_format, tensors: list[Tensor]
) -> None:
    """vmap of grad, as for differential privacy."""
    x, w, b = tensors
    x = torch.randn(5, *x.shape[1:], dtype=x.dtype, device=x.device)
    x = x.contiguous(memory_format=memory_format)

    def loss(function: Function, weight: Tensor, bias: Tensor, sample: Tensor) -> Tensor:
        if batched or function is conv2d:
            sample = sample[None]
        result: Tensor = function(sample, weight, bias).square().sum()
        return result

    agree(lambda f: vmap(grad(partial(loss, f), (0, 1, 2)), (None, None, 0))(w, b, x))


@every_layout
def test_jacobians_of_gradients(memory_format: torch.memory_format, tensors: list[Tensor]) -> None:
    """vmap of the backward, over the gradients that arrive."""
    x, w, b = (tensor.requires_grad_() for tensor in tensors)
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    grads = torch.randn(EXAMPLES, 2, 4, 4, 4, dtype=x.dtype, device=x.device)

    def batched(function: Function) -> Any:
        return torch.autograd.grad(function(x, w, b), (x, w, b), grads, is_grads_batched=True)

    agree(batched)
    agree(lambda f: autograd_functional.jacobian(f, (x, w, b), vectorize=True))


def test_ensemble_of_layers(device: torch.device) -> None:
    """functional_call with stacked parameters, and their gradients."""
    layers = [
        dwconv.DepthwiseConv2d(4, 8, 3, padding=1, padding_mode="circular", device=device)
        for _ in range(EXAMPLES)
    ]
    x = torch.randn(2, 4, 9, 8, device=device)
    parameters, _ = stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")
    results = vmap(lambda given: functional_call(base, given, x))(parameters)
    torch.autograd.backward(results.square().sum())
    for i, layer in enumerate(layers):
        torch.testing.assert_close(results[i], layer(x))
        torch.autograd.backward(layer(x).square().sum())
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(parameters[name].grad[i], parameter.grad)


def test_errors_under_vmap_name_the_argument(tensors: list[Tensor]) -> None:
    """Shapes are those of one example, also where such a call was right before."""
    x, w, b = tensors
    for _ in range(2):
        with pytest.raises(ValueError, match=r"weight must have the shape \(M\*C, 1, kh, kw\)"):
            vmap(depthwise_conv2d, (None, 0))(x, w.expand(4, 2, 2, 3).unsqueeze(0))
        with pytest.raises(ValueError, match=r"bias must have the shape \(M\*C,\), got \(\)"):
            vmap(depthwise_conv2d, (None, None, 0))(x, w, b)
        depthwise_conv2d(x, w, b)


@pytest.mark.parametrize("wanted", range(1, 8), ids=lambda wanted: f"{wanted:03b}")
def test_jvp(wanted: int, tensors: list[Tensor]) -> None:
    """Each subset of input, weight and bias has tangents; in a torch.func and in dual numbers."""
    chosen = [i for i in range(3) if wanted & 1 << i]
    primals = tuple(tensors[i] for i in chosen)
    tangents = tuple(torch.randn_like(primal) for primal in primals)

    def function_of(function: Function, *given: Tensor) -> Any:
        replaced = list(tensors)
        for i, tensor in zip(chosen, given, strict=True):
            replaced[i] = tensor
        return function(*replaced, stride=2, padding=(1, 2))

    def with_dual_numbers(function: Function) -> Any:
        function_of(function, *primals)  # and later calls are of its kind
        with forward_ad.dual_level():
            duals = map(make_dual, primals, tangents)
            return tuple(unpack_dual(function_of(function, *duals)))

    agree(lambda f: jvp(partial(function_of, f), primals, tangents))
    agree(with_dual_numbers)
    with torch.no_grad():
        agree(with_dual_numbers)


def test_tangents_that_are_not_there(device: torch.device) -> None:
    """Zeros in their place would be multiplied by Inf."""
    x = torch.full((1, 1, 3, 3), torch.inf, device=device)
    w, b = torch.ones(1, 1, 3, 3, device=device), torch.ones(1, device=device)
    _, tangent = jvp(lambda b: depthwise_conv2d(x, w, b), (b,), (b,))
    assert tangent.item() == 1
    _, tangent = jvp(lambda x: depthwise_conv2d(x, w * torch.inf, b), (x,), (torch.ones_like(x),))
    assert tangent.item() == torch.inf


def cubed(function: Function) -> Function:
    return lambda *given: function(*given, padding=1).pow(3).sum()


@pytest.mark.parametrize("outer", [jacfwd, jacrev], ids=["jacfwd", "jacrev"])
@pytest.mark.parametrize("inner", [jacfwd, jacrev], ids=["jacfwd", "jacrev"])
def test_second_derivatives(outer: Function, inner: Function, tensors: list[Tensor]) -> None:
    """Forward mode over itself and over reverse mode, and the other way round."""
    every = (0, 1, 2)
    agree(lambda f: outer(inner(cubed(f), every), every)(*tensors))


def test_hessians(tensors: list[Tensor]) -> None:
    x, w, b = tensors
    agree(lambda f: hessian(cubed(f), 1)(x, w, b))
    agree(
        lambda f: autograd_functional.hessian(
            lambda x, w: cubed(f)(x, w, b),
            (x, w),
            vectorize=True,
            outer_jacobian_strategy="forward-mode",
        )
    )


def test_third_derivative(tensors: list[Tensor]) -> None:
    x, w, b = tensors
    small = x[:1, :, :2, :3]
    agree(lambda f: jacfwd(jacrev(jacfwd(cubed(f))))(small, w, b))


@every_layout
def test_derivatives_match_differences(
    memory_format: torch.memory_format, device: torch.device
) -> None:
    """Forward mode, forward over reverse, and vmap of either, against finite differences."""
    x, w, b = make(device)
    given = [t.detach() for t in (x[:1, :1, :2, :3], w[:2, :, :2, :2], b[:2])]
    given[0] = given[0].contiguous(memory_format=memory_format)
    given = [tensor.requires_grad_() for tensor in given]
    function = partial(depthwise_conv2d, padding=(1, 0))
    assert gradcheck(
        function,
        given,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(function, given, check_fwd_over_rev=True, check_batched_grad=True)


def test_dual_gradients(tensors: list[Tensor]) -> None:
    """A tangent that arrives in the backward of a call that had none."""
    x, w, b = (tensor.requires_grad_() for tensor in tensors)

    def of(function: Function) -> Any:
        output = function(x, w, b)
        with forward_ad.dual_level():
            arriving = make_dual(torch.ones_like(output), output.detach())
            gradients = torch.autograd.grad(output, (x, w, b), arriving)
            return [tuple(unpack_dual(g)) for g in gradients]

    agree(of)


def test_transformed_calls_are_not_packed(tensors: list[Tensor]) -> None:
    """The packed operators know no tangents and no examples. They would lose them where they run
    CUDA kernels; on a CPU ATen's convolution finds them."""
    x, w, b = tensors
    depthwise_conv2d(x, w, b)
    transformed: list[Callable[[], Any]] = [
        lambda: jvp(partial(depthwise_conv2d, weight=w), (x,), (x,)),
        lambda: vmap(depthwise_conv2d, (None, None, 0))(x, w, b.expand(EXAMPLES, -1)),
        lambda: grad(cubed(depthwise_conv2d))(x, w, b),
    ]
    for call in transformed:
        with Calls() as calls:
            call()
        assert calls.names
        assert not {name for name in calls.names if "packed" in name}
    with Calls() as calls, forward_ad.dual_level():
        depthwise_conv2d(make_dual(x, x), w, b)
    assert calls.names == ["forward", "forward"]  # the tangent is a convolution too


def test_transformed_backwards_are_not_packed(tensors: list[Tensor]) -> None:
    """Of calls that were."""
    x, w, b = tensors
    x.requires_grad_()
    with Calls() as calls:
        output = depthwise_conv2d(x, w, b)
    assert calls.names == ["forward_packed"]
    ones = torch.ones_like(output)
    with Calls() as calls:
        vmap(lambda grad: torch.autograd.grad(output, x, grad, retain_graph=True))(
            ones.expand(EXAMPLES, *ones.shape)
        )
    assert calls.names == ["backward_input"]
    with Calls() as calls, forward_ad.dual_level():
        torch.autograd.grad(output, x, make_dual(ones, ones))
    assert calls.names == ["backward_input", "backward_input"]


def test_functional_gradients(tensors: list[Tensor]) -> None:
    """torch.func.grad and vjp."""
    x, w, b = tensors
    agree(lambda f: grad(cubed(f), (0, 1, 2))(x, w, b))
    output = torch.randn_like(conv2d(x, w, b))
    agree(lambda f: torch.func.vjp(f, x, w, b)[1](output))


def test_no_grad_among_transformations(tensors: list[Tensor]) -> None:
    """What is not recorded inside is a constant to all of them, and what is outside stops at it."""
    x, w, b = tensors

    def partly(function: Function) -> Function:
        def loss(x: Tensor) -> Tensor:
            with torch.no_grad():
                constant = function(x, w, b)
            result: Tensor = (function(x, w, b) * constant).sum()
            return result

        return loss

    agree(lambda f: grad(lambda x: grad(partly(f))(x).square().sum())(x))
    with torch.no_grad():
        agree(lambda f: grad(partly(f))(x))


def test_tensors_that_outlive_a_transformation(tensors: list[Tensor]) -> None:
    """torch.func leaves wrappers around its tensors; gradients reach what is inside."""
    x, w, _ = (tensor.requires_grad_() for tensor in tensors)
    escaped: list[Tensor] = []

    def loss(tensor: Tensor) -> Tensor:
        escaped.append(tensor)
        return tensor.sum()

    grad(loss)(x)
    agree(lambda f: torch.autograd.grad(f(escaped[0], w).square().sum(), (x, w)))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode: Any, tensors: list[Tensor]) -> None:
    """A trace of the operators, for other numbers; of a function's gradients as well."""
    x, w, b = tensors
    gradients = grad(cubed(depthwise_conv2d), (0, 1, 2))
    for function in (lambda x, w, b: depthwise_conv2d(x, w, b), lambda x, w, b: gradients(x, w, b)):
        graph = make_fx(function, tracing_mode=mode)(x, w, b)
        assert any("dwconv" in str(node.target) for node in graph.graph.nodes)
        others = [torch.randn_like(tensor) for tensor in tensors]
        torch.testing.assert_close(graph(*others), function(*others))


def test_functionalize(tensors: list[Tensor]) -> None:
    agree(lambda f: torch.func.functionalize(f)(*tensors))
