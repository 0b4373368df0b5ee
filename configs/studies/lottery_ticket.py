"""The lottery ticket hypothesis (Frankle & Carbin 2019, arXiv:1803.03635, section 2): LeNet-300-100 on MNIST.

    python -m aigc_jax.study --config=configs/studies/lottery_ticket.py:DIR --workdir=runs/lottery_ticket

DIR holds the four files of MNIST. In each round a fifth of the weights that are left is pruned, of the output layer a
tenth, by the magnitudes that the round before ended with. The rest begins again where it began. A control has the same
mask and other initial weights. Adam with 1.2e-3, batches of 60 and Glorot's initialization are the paper's. Its runs
have 50,000 steps, these have 5,000. Its accuracies are those of the step with the least loss on the validation split,
these are of the last step. It tells how fast a network learns by the step of that least loss, this study by the first
step that has 97 % of the validation split right, in evaluations every 100 steps.

The paper prints no accuracy, but differences, which stand in the words of the rows. A run takes 17 seconds of a core,
with its start and evaluation; the study has 92.
"""

from aigc_jax.studies.claims import Claim, Study, Versus

_FIELDS = {
    'total_steps': 5000, 'log_every_steps': 500, 'eval_every_steps': 100, 'checkpoint_every_steps': 5000,
    'keep_checkpoints': 1, 'eval.best_metric': '',
}  # fmt: skip
_WEIGHTS = (784 * 300 + 300 * 100, 100 * 10)  # without and of the output layer
_ROUNDS = 18
_DENSE = 'kept-100.0'
_TICKETS = {
    51.3: 'has a higher accuracy than the dense network',
    21.1: 'has a higher accuracy than the dense network, and learns fastest of all',
    13.5: 'has a higher accuracy than the dense network: in the paper by 0.3 percentage points, the most',
    7.0: 'has a higher accuracy than the dense network',
}
_SPEED = dict(metric='accuracy', better='min', reach=0.97, first_step=True)


def _share(round_: int) -> float:
    """Of the weights that are kept, in percent, as the paper names its networks."""
    kept = (rate**round_ * count for rate, count in zip((0.8, 0.9), _WEIGHTS, strict=True))
    return round(100 * sum(kept) / sum(_WEIGHTS), 1)


def study(folder):
    """folder: of the files of MNIST."""

    def row(round_: int, **more):
        pruned = {'prune.keep': 0.8**round_, 'prune.rules': (('Dense_2', 0.9**round_),)} if round_ else {}
        fields = {**_FIELDS, 'data.name': f'idx:{folder}', **pruned, **more}
        start = dict(start=f'kept-{_share(round_ - 1)}', into='prune.run') if round_ else {}
        return dict(config='../classify.py:lenet', fields=fields, **start)

    claims = []
    for k in range(_ROUNDS + 1):
        share = _share(k)
        words = f'{share} % of the weights, from where they began, {_TICKETS.get(share, "are trained")}'
        expected = Versus(_DENSE) if share in _TICKETS else None
        claims.append(
            Claim(name=f'kept-{share}', claim=words, metric='accuracy', better='max', expected=expected, **row(k))
        )
    for share, than, words in (
        (100.0, 'kept-1.9', 'The dense network has a higher accuracy than 1.9 % of its weights'),
        (3.6, 'kept-1.9', '3.6 % of the weights, about as accurate as all, have a higher accuracy than 1.9 %'),
    ):
        k = next(k for k in range(_ROUNDS + 1) if _share(k) == share)
        claims.append(
            Claim(
                name=f'{share}-over-1.9', claim=words, metric='accuracy', better='max', expected=Versus(than), **row(k)
            )
        )
    for k in range(_ROUNDS + 1):
        share = _share(k)
        if share not in (100.0, 51.3, 21.1, 7.0, 3.6):
            continue
        faster = share in (51.3, 21.1)
        words = f'{share} % of the weights reach 97 % on the validation split'
        words += ' sooner than the dense network' * faster + ': in the paper 38 % earlier' * (share == 21.1)
        claims.append(
            Claim(
                name=f'speed-{share}', claim=words, expected=Versus('speed-100.0') if faster else None, **_SPEED,
                **row(k),
            )
        )  # fmt: skip
        if not k:
            continue
        redrawn = row(k, **{'prune.redrawn': True})
        claims += [
            Claim(
                name=f'redrawn-{share}', claim=f'The same {share} % from other initial weights', metric='accuracy',
                better='max', **redrawn,
            ),
            Claim(
                name=f'ticket-{share}', metric='accuracy', better='max', expected=Versus(f'redrawn-{share}'),
                claim=f'{share} % of the weights have a higher accuracy from where they began than drawn anew'
                + ': in the paper by half a percentage point' * (share == 21.1),
                **row(k),
            ),
        ]  # fmt: skip
        if share == 21.1:
            claims += [
                Claim(
                    name=f'redrawn-speed-{share}', claim=f'The same {share} % from other initial weights, to 97 %',
                    **_SPEED, **redrawn,
                ),
                Claim(
                    name=f'ticket-speed-{share}', expected=Versus(f'redrawn-speed-{share}'), **_SPEED, **row(k),
                    claim=f'{share} % of the weights learn faster from where they began than drawn anew: in the paper '
                    '2.51 times',
                ),
            ]  # fmt: skip
    return Study(title='The lottery ticket hypothesis on MNIST', claims=claims, seeds=4)
