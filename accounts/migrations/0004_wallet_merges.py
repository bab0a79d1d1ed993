"""Wallets that became one, and refunds of purchases that the seller of the money did not make.

A purchase has one refund that stands: another one may follow only when an adjust took the last one back. The wallet's
row is locked before that is looked at, so two at once cannot both pass.
"""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


FORWARD = """
CREATE OR REPLACE FUNCTION accounts_apply_entry() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wallet accounts_creditaccount%ROWTYPE;
    origin accounts_credittransaction%ROWTYPE;
    expected text;
BEGIN
    SELECT * INTO wallet FROM accounts_creditaccount WHERE id = NEW.account_id FOR UPDATE;
    IF NEW.resolves_id IS NOT NULL THEN
        SELECT * INTO origin FROM accounts_credittransaction WHERE id = NEW.resolves_id;
        expected := CASE NEW.kind WHEN 'capture' THEN 'reserve' WHEN 'release' THEN 'reserve'
                                  WHEN 'refund' THEN 'capture' WHEN 'purchase_refund' THEN 'purchase'
                                  WHEN 'adjust' THEN 'purchase_refund' END;
        IF origin.kind IS DISTINCT FROM expected THEN
            RAISE EXCEPTION 'ledger: a % cannot resolve a %', NEW.kind, origin.kind USING ERRCODE = 'check_violation';
        END IF;
        IF origin.account_id <> NEW.account_id OR origin.reference IS DISTINCT FROM NEW.reference THEN
            RAISE EXCEPTION 'ledger: % resolves an entry of another account or job', NEW.kind USING ERRCODE = 'check_violation';
        END IF;
        IF (NEW.kind IN ('capture', 'release') AND NEW.held_delta <> -origin.held_delta)
           OR (NEW.kind IN ('refund', 'purchase_refund', 'adjust') AND NEW.posted_delta <> -origin.posted_delta) THEN
            RAISE EXCEPTION 'ledger: a % is for the whole amount', NEW.kind USING ERRCODE = 'check_violation';
        END IF;
        IF NEW.kind = 'purchase_refund' AND EXISTS (
            SELECT 1 FROM accounts_credittransaction earlier
            WHERE earlier.kind = 'purchase_refund' AND earlier.resolves_id = NEW.resolves_id AND NOT EXISTS (
                SELECT 1 FROM accounts_credittransaction back WHERE back.kind = 'adjust' AND back.resolves_id = earlier.id
            )
        ) THEN
            RAISE EXCEPTION 'ledger: this purchase is refunded already' USING ERRCODE = 'unique_violation';
        END IF;
    END IF;
    NEW.posted_after := wallet.posted + NEW.posted_delta;
    NEW.held_after := wallet.held + NEW.held_delta;
    UPDATE accounts_creditaccount SET posted = NEW.posted_after, held = NEW.held_after WHERE id = NEW.account_id;
    RETURN NEW;
END $$;

CREATE INDEX purchase_refunds_of ON accounts_credittransaction (resolves_id) WHERE kind = 'purchase_refund';

CREATE FUNCTION accounts_guard_merge() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.undone_at IS NULL AND NEW.undone_at IS NOT NULL AND (
        (OLD.id, OLD.source_id, OLD.target_id, OLD.after_entry, OLD.moved, OLD.stayed, OLD.brought_welcome, OLD.made_at)
        = (NEW.id, NEW.source_id, NEW.target_id, NEW.after_entry, NEW.moved, NEW.stayed, NEW.brought_welcome, NEW.made_at)
    ) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'ledger: a merge can be undone once, and not be changed' USING ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER only_undone BEFORE UPDATE ON accounts_walletmerge FOR EACH ROW EXECUTE FUNCTION accounts_guard_merge();
CREATE TRIGGER no_delete BEFORE DELETE ON accounts_walletmerge FOR EACH ROW EXECUTE FUNCTION accounts_refuse();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON accounts_walletmerge FOR EACH STATEMENT EXECUTE FUNCTION accounts_refuse();
"""

BACKWARD = """
DROP TRIGGER no_truncate ON accounts_walletmerge;
DROP TRIGGER no_delete ON accounts_walletmerge;
DROP TRIGGER only_undone ON accounts_walletmerge;
DROP FUNCTION accounts_guard_merge();
DROP INDEX purchase_refunds_of;
CREATE OR REPLACE FUNCTION accounts_apply_entry() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wallet accounts_creditaccount%ROWTYPE;
    origin accounts_credittransaction%ROWTYPE;
    expected text;
BEGIN
    SELECT * INTO wallet FROM accounts_creditaccount WHERE id = NEW.account_id FOR UPDATE;
    IF NEW.resolves_id IS NOT NULL THEN
        SELECT * INTO origin FROM accounts_credittransaction WHERE id = NEW.resolves_id;
        expected := CASE NEW.kind WHEN 'capture' THEN 'reserve' WHEN 'release' THEN 'reserve'
                                  WHEN 'refund' THEN 'capture' WHEN 'purchase_refund' THEN 'purchase' END;
        IF origin.kind IS DISTINCT FROM expected THEN
            RAISE EXCEPTION 'ledger: a % cannot resolve a %', NEW.kind, origin.kind USING ERRCODE = 'check_violation';
        END IF;
        IF origin.account_id <> NEW.account_id OR origin.reference IS DISTINCT FROM NEW.reference THEN
            RAISE EXCEPTION 'ledger: % resolves an entry of another account or job', NEW.kind USING ERRCODE = 'check_violation';
        END IF;
        IF (NEW.kind IN ('capture', 'release') AND NEW.held_delta <> -origin.held_delta)
           OR (NEW.kind IN ('refund', 'purchase_refund') AND NEW.posted_delta <> -origin.posted_delta) THEN
            RAISE EXCEPTION 'ledger: a % is for the whole amount', NEW.kind USING ERRCODE = 'check_violation';
        END IF;
    END IF;
    NEW.posted_after := wallet.posted + NEW.posted_delta;
    NEW.held_after := wallet.held + NEW.held_delta;
    UPDATE accounts_creditaccount SET posted = NEW.posted_after, held = NEW.held_after WHERE id = NEW.account_id;
    RETURN NEW;
END $$;
"""


class Migration(migrations.Migration):

    dependencies = [
        ('accounts', '0003_user_language'),
    ]

    operations = [
        migrations.CreateModel(
            name='WalletMerge',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('after_entry', models.BigIntegerField(help_text='The newest entry of the ledger when it was made.')),
                ('moved', models.PositiveBigIntegerField(help_text='Credits that changed wallets.')),
                ('stayed', models.PositiveBigIntegerField(help_text='Unspent sign-up credits that stayed behind: everybody has them once.')),
                ('brought_welcome', models.BooleanField(help_text='Whether the sign-up credits were among those moved.')),
                ('reason', models.CharField(max_length=500)),
                ('made_at', models.DateTimeField(auto_now_add=True)),
                ('undone_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('undone_reason', models.CharField(blank=True, max_length=500)),
            ],
            options={
                'ordering': ['-id'],
            },
        ),
        migrations.RemoveConstraint(
            model_name='credittransaction',
            name='one_refund_per_purchase',
        ),
        migrations.RemoveConstraint(
            model_name='credittransaction',
            name='transaction_shape_of_its_kind',
        ),
        migrations.AlterField(
            model_name='credittransaction',
            name='resolves',
            field=models.ForeignKey(blank=True, help_text='The hold of a capture or release, the capture of a refund, the purchase of a purchase refund, the purchase refund that an adjust takes back.', null=True, on_delete=django.db.models.deletion.PROTECT, related_name='resolutions', to='accounts.credittransaction'),
        ),
        migrations.AddConstraint(
            model_name='credittransaction',
            constraint=models.UniqueConstraint(condition=models.Q(('kind', 'adjust'), ('resolves__isnull', False)), fields=('resolves',), name='one_way_back_per_purchase_refund'),
        ),
        migrations.AddConstraint(
            model_name='credittransaction',
            constraint=models.CheckConstraint(condition=models.Q(('external_id', ''), _negated=True), name='external_id_says_something'),
        ),
        migrations.AddConstraint(
            model_name='credittransaction',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('kind', 'grant'), ('posted_delta__gt', 0), ('held_delta', 0), ('counterpart', None), ('resolves', None)), models.Q(('external_id__isnull', False), ('kind', 'purchase'), ('posted_delta__gt', 0), ('held_delta', 0), ('counterpart', None), ('resolves', None)), models.Q(('kind', 'purchase_refund'), ('posted_delta__lt', 0), ('held_delta', 0), ('counterpart', None), ('resolves__isnull', False)), models.Q(('held_delta__gte', 0), ('kind', 'reserve'), ('posted_delta', 0), ('reference__isnull', False), ('counterpart', None), ('resolves', None)), models.Q(('held_delta', models.F('posted_delta')), ('kind', 'capture'), ('posted_delta__lte', 0), ('reference__isnull', False), ('counterpart', None), ('resolves__isnull', False)), models.Q(('held_delta__lte', 0), ('kind', 'release'), ('posted_delta', 0), ('reference__isnull', False), ('counterpart', None), ('resolves__isnull', False)), models.Q(('kind', 'refund'), ('posted_delta__gt', 0), ('held_delta', 0), ('reference__isnull', False), ('counterpart', None), ('resolves__isnull', False)), models.Q(('kind', 'adjust'), models.Q(('posted_delta', 0), _negated=True), ('held_delta', 0), ('counterpart', None), ('resolves', None)), models.Q(('kind', 'adjust'), ('posted_delta__gt', 0), ('held_delta', 0), ('counterpart', None), ('resolves__isnull', False)), models.Q(('counterpart__isnull', False), ('kind', 'transfer'), ('resolves', None), models.Q(('counterpart', models.F('account')), _negated=True), models.Q(('posted_delta', 0), _negated=True), ('held_delta', 0), ('reference__isnull', False)), _connector='OR'), name='transaction_shape_of_its_kind'),
        ),
        migrations.AddField(
            model_name='walletmerge',
            name='actor',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='+', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddField(
            model_name='walletmerge',
            name='source',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='merges_away', to='accounts.creditaccount'),
        ),
        migrations.AddField(
            model_name='walletmerge',
            name='target',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='merges_in', to='accounts.creditaccount'),
        ),
        migrations.AddField(
            model_name='walletmerge',
            name='undone_by',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddConstraint(
            model_name='walletmerge',
            constraint=models.CheckConstraint(condition=models.Q(('source', models.F('target')), _negated=True), name='merge_of_two_wallets'),
        ),
        migrations.AddConstraint(
            model_name='walletmerge',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('undone_at', None), ('undone_by', None)), models.Q(('undone_at__isnull', False), ('undone_by__isnull', False)), _connector='OR'), name='merge_undone_by_somebody'),
        ),
        migrations.RunSQL(FORWARD, BACKWARD),
    ]
